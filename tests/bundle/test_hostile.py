"""Hostile bundles: every one is refused, and nothing is written outside the target, or into it."""

import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeft.errors import BundleError
from edgeft.runtime import bundle_folder, bundle_zip
from edgeft.runtime.bundle import check_bundle, is_bundle, open_bundle, unpack_bundle
from tests.bundle import building
from tests.bundle.building import FILES, ROLES, entry, manifest_of, write_folder, write_zip

Case = Callable[[Path], Path]
BYTES = b"weights" * 100


def named(name: str) -> Case:
    """A zip file with one more file, which the manifest lists as well."""
    return lambda here: write_zip(here / "a.edgeft", {**FILES, name: b"x"})


def listed(name: str) -> Case:
    """A manifest that lists a name the zip file spells in another way."""
    return lambda here: write_zip(here / "a.edgeft", FILES, manifest_of({**FILES, name: b"x"}))


def manifest(**changes: Any) -> Case:
    """A manifest in which these keys are others."""
    return lambda here: write_zip(here / "a.edgeft", FILES, manifest_of() | changes)


def raw_manifest(raw: bytes) -> Case:
    return lambda here: write_zip(here / "a.edgeft", FILES, raw)


def changed(edit: Callable[[bytearray], Any]) -> Case:
    """A good zip file with its bytes edited (`edit` may return others)."""

    def make(here: Path) -> Path:
        path = write_zip(here / "a.edgeft", FILES)
        data = bytearray(path.read_bytes())
        result = edit(data)
        path.write_bytes(bytes(data if result is None else result))
        return path

    return make


def added(info: zipfile.ZipInfo, data: bytes) -> Case:
    """A good zip file with one more entry of its own kind, which the manifest lists."""

    def make(here: Path) -> Path:
        path = write_zip(here / "a.edgeft", FILES, manifest_of({**FILES, info.filename: data}))
        with zipfile.ZipFile(path, "a") as packed:
            packed.writestr(info, data)
        return path

    return make


def renamed(old: bytes, new: bytes, count: int = -1) -> Case:
    """A name of the zip file replaced byte by byte, in the local header and the directory."""
    assert len(old) == len(new)
    return changed(lambda data: data.replace(old, new, count))


def folder(edit: Callable[[Path], Any]) -> Case:
    def make(here: Path) -> Path:
        path = write_folder(here / "bundle")
        edit(path)
        return path

    return make


def overlapping(data: bytearray) -> None:
    """Let the directory's last entry point at the first one's content."""
    at = data.rfind(b"PK\x01\x02")
    struct.pack_into("<L", data, at + 42, 0)


def directory_before_the_file(data: bytearray) -> None:
    struct.pack_into("<L", data, len(data) - 10, 200_000)


def directory_behind_the_file(data: bytearray) -> None:
    struct.pack_into("<L", data, len(data) - 6, 0xFFFFFFF0)


def many_announced(data: bytearray) -> None:
    struct.pack_into("<2H", data, len(data) - 14, 65000, 65000)


def second_disk(data: bytearray) -> None:
    struct.pack_into("<H", data, len(data) - 18, 1)


def before_the_directory(data: bytearray) -> None:
    """Bytes hidden between the last file and the directory, whose place is told right."""
    at = data.find(b"PK\x01\x02")
    data[at:at] = b"hidden"
    struct.pack_into("<L", data, len(data) - 6, at + len(b"hidden"))


def more_than_announced(here: Path) -> Path:
    files = {f"f{at}": b"" for at in range(1001)}
    path = write_zip(here / "a.edgeft", files, manifest_of(files))
    data = bytearray(path.read_bytes())
    struct.pack_into("<2H", data, len(data) - 14, 3, 3)
    path.write_bytes(bytes(data))
    return path


def streamed(here: Path) -> Path:
    """Written to a pipe: sizes stand behind the contents, and readers differ in what they believe."""

    class Pipe:
        def __init__(self) -> None:
            self.data = b""

        def write(self, data: bytes) -> int:
            self.data += bytes(data)
            return len(data)

        def flush(self) -> None:
            pass

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as packed:  # type: ignore[call-overload]
        packed.writestr(entry("bundle.json"), json.dumps(GOOD))
        for name, data in FILES.items():
            packed.writestr(entry(name), data)
    (here / "a.edgeft").write_bytes(pipe.data)
    return here / "a.edgeft"


def commented(name: str) -> zipfile.ZipInfo:
    info = entry(name)
    info.comment = b"hidden"
    return info


def two_contents(here: Path) -> Path:
    """A name twice, the second time with other content: readers differ in which one they take."""
    path = write_zip(here / "a.edgeft", FILES)
    with zipfile.ZipFile(path, "a") as packed, pytest.warns(UserWarning, match="Duplicate"):
        packed.writestr(entry("README.md"), b"# evil")
    return path


def swapped(here: Path) -> Path:
    """Two files of the same size under each other's name."""
    content = {**FILES, "a.txt": b"one", "b.txt": b"two"}
    return write_zip(here / "a.edgeft", {**content, "a.txt": b"two", "b.txt": b"one"}, manifest_of(content))


def bomb(here: Path) -> Path:
    """40 MB of zeros in 40 KB."""
    zeros = bytes(40_000_000)
    return added(entry("zeros.bin", method=zipfile.ZIP_DEFLATED), zeros)(here)


def link_to_folder(path: Path) -> None:
    (path / "tokenizer/tokenizer.json").unlink()
    (path / "tokenizer").rmdir()
    (path.parent / "outside").mkdir()
    (path.parent / "outside/tokenizer.json").write_bytes(b"{}")
    (path / "tokenizer").symlink_to(path.parent / "outside")


def link_to_file(path: Path) -> None:
    (path.parent / "secret").write_bytes(FILES["README.md"])
    (path / "README.md").unlink()
    (path / "README.md").symlink_to(path.parent / "secret")


def many_files(n: int, *, are_listed: bool) -> Case:
    files = {f"f{at}": b"" for at in range(n)}
    return lambda here: building.write_folder(here / "bundle", files, manifest_of(files if are_listed else FILES))


NESTED = b'{"files":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
GOOD = manifest_of()
CASES: dict[str, tuple[Case, str]] = {
    # names, in the zip file and in its manifest
    "parent folder": (named("../evil"), "leads out"),
    "parent folder inside": (named("model/../../evil"), "leads out"),
    "absolute path": (named("/tmp/evil"), "absolute"),
    "drive letter": (named("C:evil"), "absolute"),
    "backslash": (renamed(b"README.md", b"..\\..\\evl"), "characters"),
    "network share": (named("\\\\host\\share"), "characters"),
    "device": (named("model/NUL"), "device"),
    "device with an ending": (named("con.txt"), "device"),
    "alternate stream": (named("README.md:evil"), "characters"),
    "hidden file": (named(".bashrc"), "characters"),
    "dot folder": (named("model/./x"), "characters"),
    "empty part": (named("model//x"), "characters"),
    "trailing dot": (named("x."), "characters"),
    "control character": (named("a\nb"), "characters"),
    "right-to-left override": (named("a\u202egpj"), "characters"),
    "two spellings of an accent": (named("caf\u00e9"), "characters"),
    "empty name": (added(entry(""), b"x"), "is empty"),
    "null byte": (renamed(b"README.md", b"READ\0E.md"), "README.md|READ"),
    "not UTF-8": (added(entry("\u00e9vil.bin"), b"x"), "characters"),
    "too deep": (named("a/b/c/d/e"), "deep"),
    "too long": (named("x" * 300), "longer than"),
    "differ in case": (named("readme.MD"), "differ in case"),
    "folders differ in case": (named("MODEL/x"), "differ in case"),
    "file under a file": (named("README.md/x"), "lies under"),
    "manifest by another case": (named("Bundle.json"), "differ in case"),
    "name as a path": (manifest(name="../../tmp/x"), "leads out"),
    "name as a folder": (manifest(name="a/b"), "is a path"),
    "role outside": (manifest(roles={**ROLES, "card": "../../etc/passwd"}), "not among its files"),
    "no model": (manifest(roles={}), "names no model"),
    # kinds of entries
    "link": (added(entry("link", mode=0o120777), b"/etc/passwd"), "link"),
    "device node": (added(entry("node", mode=0o020666), b""), "no plain file"),
    "folder entry": (added(entry("model/sub", mode=0o040755), b""), "no plain file"),
    "folder by its name": (added(entry("model/sub/"), b""), "characters"),
    "encrypted": (
        changed(lambda data: struct.pack_into("<H", data, data.rfind(b"PK\x01\x02") + 8, 1)),
        "a bundle is not",
    ),
    "zip bomb": (bomb, "compressed"),
    "overlapping entries": (changed(overlapping), "lies over|damaged"),
    "bytes between entries": (changed(lambda data: data[:0] + b"PK\x03\x04 junk" + data), "follows bytes|damaged"),
    "a name twice": (two_contents, "there twice"),
    "several disks": (changed(second_disk), "several disks"),
    "bytes before the directory": (changed(before_the_directory), "its directory starts"),
    "more than announced": (more_than_announced, "holds 1002 files"),
    "sizes behind the contents": (streamed, "not written by edgeft"),
    "a comment": (added(commented("x"), b"x"), "not written by edgeft"),
    "directory before the file": (changed(directory_before_the_file), "damaged"),
    "directory behind the file": (changed(directory_behind_the_file), "damaged|lies over|follows bytes"),
    "thousands announced": (changed(many_announced), "announces"),
    # content
    "extra file": (lambda here: write_zip(here / "a", {**FILES, "x": b"x"}, GOOD), "does not list"),
    "missing file": (lambda here: write_zip(here / "a", {"README.md": b"# tiny\n"}, GOOD), "missing"),
    "listed elsewhere": (listed("x"), "missing"),
    "wrong hash": (lambda here: write_zip(here / "a", {**FILES, "README.md": b"# evil\n"}, GOOD), "content of README"),
    "wrong size": (lambda here: write_zip(here / "a", {**FILES, "README.md": b"#"}, GOOD), "1 bytes"),
    "swapped files": (swapped, "content of"),
    "flipped bit": (changed(lambda data: data.__setitem__(data.find(BYTES), 0)), "damaged|content of"),
    "cut short": (changed(lambda data: data[:-100]), "cut short"),
    "cut in the middle": (changed(lambda data: data[:200]), "cut short"),
    "something behind": (changed(lambda data: data + b"#!/bin/sh\n"), "cut short or something hangs"),
    "another kind of file": (changed(lambda data: b"GGUF" + data), "not a bundle"),
    "empty": (changed(lambda data: b""), "not a bundle"),
    # manifests
    "no manifest": (renamed(b"bundle.json", b"bundel.json"), "no bundle.json"),
    "manifest too large": (raw_manifest(b" " * (1 << 20) + json.dumps(GOOD).encode()), "more than the 1048576"),
    "manifest not JSON": (raw_manifest(b"{"), "not valid JSON"),
    "manifest not UTF-8": (raw_manifest(json.dumps(GOOD).encode().replace(b"tiny", b"\xff\xff\xff\xff")), "JSON"),
    "manifest nested": (raw_manifest(NESTED), "JSON|not a bundle's manifest"),
    "a key twice": (raw_manifest(json.dumps(GOOD).encode().replace(b"{", b'{"files": {}, ', 1)), "twice"),
    "role of a number": (manifest(roles={**ROLES, "card": 5}), "not a bundle's manifest"),
    "name of a number": (manifest(name=5), "not a bundle's manifest"),
    "gate without a verdict": (manifest(gate={"passed": "yes"}), "not a bundle's manifest"),
    "manifest a list": (raw_manifest(b"[]"), "not a bundle's manifest"),
    "another format": (manifest(format=2), "format 2"),
    "negative size": (manifest(files={"README.md": {"bytes": -1, "sha256": "0" * 64}}), "not a bundle's manifest"),
    "odd hash": (manifest(files={"README.md": {"bytes": 1, "sha256": "0" * 63 + " "}}), "not a bundle's manifest"),
    "signature of the wrong size": (added(entry("bundle.json.sig"), b"x" * 5000), "5000 bytes|there twice"),
    # folders
    "folder: link to a file": (folder(link_to_file), "a link"),
    "folder: link to a folder": (folder(link_to_folder), "a link"),
    "folder: named pipe": (folder(lambda path: os.mkfifo(path / "pipe")), "no plain file"),
    "folder: extra file": (folder(lambda path: (path / "run.sh").write_text("#!")), "does not list"),
    "folder: changed file": (folder(lambda path: (path / "README.md").write_text("# evil\n")), "content of"),
    "folder: missing file": (folder(lambda path: (path / "README.md").unlink()), "missing"),
    "folder: cut short": (folder(lambda path: os.truncate(path / "model/tiny.gguf", 5)), "5 bytes"),
    "folder: large signature": (folder(lambda path: (path / "bundle.json.sig").write_bytes(b"x" * 65)), "65 bytes"),
    "folder: too many listed": (many_files(1001, are_listed=True), "lists more than the 1000"),
    "folder: far too many": (many_files(2001, are_listed=False), "holds more than 1000"),
    "folder: no manifest": (folder(lambda path: (path / "bundle.json").unlink()), "no bundle.json"),
}


def test_there_are_at_least_thirty() -> None:
    assert len(CASES) >= 30


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_bundle_is_refused_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    make, message = CASES[name]
    here = tmp_path / "here"
    here.mkdir()
    bundle = make(here)
    before = everything(tmp_path)
    for act in (
        lambda: check_bundle(bundle),
        lambda: unpack_bundle(bundle, tmp_path / "target" / "bundle"),
        lambda: open_bundle(bundle, tmp_path / "cache"),
    ):
        with pytest.raises(BundleError, match=message):
            act()
    assert everything(tmp_path) - {"target", "cache"} == before


def everything(path: Path) -> set[str]:
    return {entry.relative_to(path).as_posix() for entry in path.rglob("*")}


def test_the_good_ones_pass(tmp_path: Path) -> None:
    packed, plain = write_zip(tmp_path / "a.edgeft", FILES), write_folder(tmp_path / "plain")
    for path in (packed, plain):
        assert is_bundle(path)
        assert check_bundle(path).name == "tiny"
        opened = open_bundle(path, tmp_path / "cache")
        assert opened.model.read_bytes() == BYTES
        assert opened.file("grammar") is None
        assert opened.file("tokenizer") == opened.path / "tokenizer"
        assert opened.json("grammar") is None
        unpack_bundle(path, tmp_path / f"out-{path.name}")
        assert {name: (tmp_path / f"out-{path.name}" / name).read_bytes() for name in FILES} == FILES


def test_a_target_made_meanwhile_stays_as_it_is(tmp_path: Path) -> None:
    target = tmp_path / "target"

    def write(folder: Path) -> None:
        (folder / "ours").write_text("ours")
        target.mkdir()
        (target / "theirs").write_text("theirs")

    with pytest.raises(BundleError, match="is there already"):
        bundle_folder.write_folder(target, write)
    assert everything(tmp_path) == {"target", "target/theirs"}


def test_no_changed_byte_slips_through(tmp_path: Path) -> None:
    """Bytes of a good zip file inverted, one at a time: refused, or (dates) without effect."""
    good = write_zip(tmp_path / "good.edgeft", FILES).read_bytes()
    raw = check_bundle(tmp_path / "good.edgeft").raw
    path, n_harmless = tmp_path / "a.edgeft", 0
    places = range(0, len(good), 7)
    for at in places:
        path.write_bytes(good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :])
        try:
            assert check_bundle(path).raw == raw
            n_harmless += 1
        except BundleError:
            pass
    assert 0 < n_harmless < 0.2 * len(places)


def test_no_shorter_file_slips_through(tmp_path: Path) -> None:
    good = write_zip(tmp_path / "good.edgeft", FILES).read_bytes()
    for length in range(0, len(good), 13):
        (tmp_path / "a.edgeft").write_bytes(good[:length])
        with pytest.raises(BundleError):
            check_bundle(tmp_path / "a.edgeft")


def test_a_file_of_many_gigabytes_has_wider_fields_and_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond 2 GiB zip files use 64-bit fields (ZIP64); here from 300 bytes on."""
    folder = write_folder(tmp_path / "folder")
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 300)
    bundle_zip.write_zip(folder, [*FILES, "bundle.json"], tmp_path / "a.edgeft")
    monkeypatch.undo()
    assert b"PK\x06\x06" in (tmp_path / "a.edgeft").read_bytes()
    assert check_bundle(tmp_path / "a.edgeft").name == "tiny"
