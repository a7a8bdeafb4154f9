"""Atomic writes and manifests: what a disk that refuses, or a hand that meddles, can and cannot do."""

import errno
import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from edgeft.artifact import MANIFEST, read_artifact, write_atomic, write_manifest, writing
from edgeft.errors import ArtifactError


def write_half(path: Path, error: Exception) -> None:
    with writing(path) as temporary:
        temporary.write_text("half")
        raise error


def test_writing_replaces_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_atomic(path, "old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_atomic(path, "old")
    with pytest.raises(ZeroDivisionError):
        write_half(path, ZeroDivisionError())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no permission"),
    ],
)
def test_a_refused_write_says_what_to_do(tmp_path: Path, number: int, advice: str) -> None:
    path = tmp_path / "file.txt"
    with pytest.raises(ArtifactError, match=advice) as caught:
        write_half(path, OSError(number, "refused", str(path)))
    assert str(path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="a part of the path is a file"):
        write_atomic(tmp_path / "file" / "inner" / "x", "text")


def test_a_full_file_system(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("this user may not mount a file system")
    try:
        write_atomic(small / "kept", "kept")
        with pytest.raises(ArtifactError, match="the disk is full"):
            write_atomic(small / "kept", b"x" * 1_000_000)
        assert (small / "kept").read_text() == "kept"
        assert [path.name for path in small.iterdir()] == ["kept"]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_manifest_lists_every_file(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "inner" / "b.bin").write_bytes(b"\0" * 3_000_000)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "state.pt").write_text("not part of it")
    written = write_manifest(tmp_path, "train", "k" * 64, {"loss": 1.5}, {"recipe seed": 42})
    read = read_artifact(tmp_path)
    assert read == written
    assert {name: record.sha256 for name, record in read.files.items()} == {
        "a.txt": hashlib.sha256(b"a").hexdigest(),
        "inner/b.bin": hashlib.sha256(b"\0" * 3_000_000).hexdigest(),
    }
    assert read.file("inner/b.bin") == tmp_path / "inner" / "b.bin"
    with pytest.raises(ArtifactError, match=r"has no file c\.txt; it has: a\.txt, inner/b\.bin"):
        read.file("c.txt")


def test_an_empty_folder_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="wrote nothing"):
        write_manifest(tmp_path, "train", "k", {})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        "null",
        json.dumps({"format": 99, "stage": "a", "key": "b", "files": {}, "metrics": {}}),
    ],
)
def test_broken_manifests(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(ArtifactError, match=MANIFEST):
        read_artifact(tmp_path)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not an artifact"):
        read_artifact(tmp_path)
    with pytest.raises(ArtifactError, match="not an artifact"):
        read_artifact(tmp_path / "nowhere")
