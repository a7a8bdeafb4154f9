"""The store: finding, verifying, locking, and the memory of hashes."""

import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from edgeft.artifact import MANIFEST, Artifact
from edgeft.console import silent_log
from edgeft.errors import ArtifactError
from edgeft.store import HashCache, Store

KEY = "0123456789abcdef" * 4


class Said:
    """A log that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, label: str, total: int, unit: str) -> Any:
        return silent_log().progress(label, total, unit)


def make(store: Store, content: str = "content", key: str = KEY) -> Artifact:
    out = store.begin("merge", key, resumable=False)
    (out / "model.bin").write_text(content)
    return store.finish("merge", key, {"size": 1.0}, {"recipe seed": 42})


def test_what_is_made_is_found(tmp_path: Path) -> None:
    made = make(Store(tmp_path))
    assert Store(tmp_path).find("merge", KEY, silent_log()) == made
    assert made.file("model.bin").read_text() == "content"
    assert Store(tmp_path).find("merge", "f" * 64, silent_log()) is None
    assert Store(tmp_path).find("train", KEY, silent_log()) is None


def spoil_content(path: Path) -> None:
    stat = (path / "model.bin").stat()
    (path / "model.bin").write_text("CONTENT")  # same size
    os.utime(path / "model.bin", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # and the same times


def spoil_other_key(path: Path) -> None:
    content = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(content | {"key": KEY[:16] + "0" * 48}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_content, "the content of model.bin changed"),
        (lambda path: (path / "model.bin").write_text("longer content"), "the size of model.bin changed"),
        (lambda path: (path / "model.bin").unlink(), "model.bin cannot be read"),
        (lambda path: (path / MANIFEST).unlink(), f"no {MANIFEST}"),
        (lambda path: (path / MANIFEST).write_text("{"), "not valid JSON"),
        (spoil_other_key, "is of another artifact"),
    ],
)
def test_damage_is_seen_said_and_set_aside(tmp_path: Path, spoil: Any, said: str) -> None:
    store = Store(tmp_path)
    store.hashes.settled_ns = 0
    artifact = make(store)
    assert isinstance(store.check("merge", KEY), Artifact)
    assert store.hashes.path.exists()  # the hash is remembered
    time.sleep(0.05)  # past the file system's tick: a rewrite gets another ctime
    spoil(artifact.path)
    log = Said()
    assert store.find("merge", KEY, log) is None
    assert len(log.lines) == 1
    assert said in log.lines[0]
    assert not artifact.path.exists()
    assert artifact.path.with_name(artifact.path.name + ".damaged").exists()
    again = make(store)
    assert Store(tmp_path).find("merge", KEY, log) == again


def test_a_work_folder_is_kept_only_for_a_resumable_stage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (store.begin("train", KEY, resumable=False) / "half").write_text("half")
    assert [path.name for path in store.begin("train", KEY, resumable=True).iterdir()] == ["half"]
    assert list(store.begin("train", KEY, resumable=False).iterdir()) == []


def test_a_kill_between_manifest_and_rename_loses_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artifact = make(store)
    work = store.work_path("merge", KEY)
    artifact.path.rename(work)
    (work / "checkpoint").mkdir()
    assert store.find("merge", KEY, silent_log()) is None
    assert store.adopt("merge", KEY) == artifact
    assert not (artifact.path / "checkpoint").exists()
    shutil.move(artifact.path, work)
    (work / "model.bin").write_text("changed")
    assert store.adopt("merge", KEY) is None
    assert list(store.begin("merge", KEY, resumable=True).iterdir()) == []


def test_links_lead_people_to_the_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = make(store), make(store, "other", "f" * 64)
    for artifact in (first, second, second):
        link = store.link("home", artifact)
        assert link == tmp_path / "home" / "merge"
        assert not Path(os.readlink(link)).is_absolute()
        assert link.resolve() == artifact.path.resolve()
    assert store.linked("home", "merge") == Artifact(
        link, second.stage, second.key, second.files, second.metrics, second.made_from
    )
    assert store.linked("home", "train") is None
    (tmp_path / "mine" / "merge").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="in the way"):
        store.link("mine", first)


def test_a_work_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file")
    assert store.check("merge", KEY) is None
    with pytest.raises(ArtifactError, match="a part of the path is a file"):
        store.begin("merge", KEY, resumable=False)
    with pytest.raises(ArtifactError, match="a part of the path is a file"), store.lock("merge", KEY, silent_log()):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_forbidden_work_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ArtifactError, match="no permission"):
        Store(tmp_path / "runs").begin("merge", KEY, resumable=False)


def hold_lock(workdir: Path, ready: Any, release: Any) -> None:
    with Store(workdir).lock("merge", KEY, silent_log()):
        ready.set()
        release.wait()


def test_the_second_run_waits_and_says_so(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    ready, release = spawn.Event(), spawn.Event()
    other = spawn.Process(target=hold_lock, args=(tmp_path, ready, release))
    other.start()
    ready.wait()

    class Releasing(Said):
        def say(self, text: str) -> None:
            super().say(text)
            release.set()

    log = Releasing()
    with Store(tmp_path).lock("merge", KEY, log):
        pass
    other.join()
    assert log.lines == ["merge: another run is making this; waiting for it"]
    with Store(tmp_path).lock("merge", KEY, log), Store(tmp_path).lock("merge", "f" * 64, log):
        assert len(log.lines) == 1


def test_hashes_are_remembered_and_rewrites_noticed(tmp_path: Path) -> None:
    path, memory = tmp_path / "file", tmp_path / "hashes.json"
    path.write_text("abc")
    abc = HashCache(memory).sha256(path)
    assert abc == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    first = HashCache(memory, settled_ns=0)
    first.sha256(path)
    first.save()
    assert json.loads(memory.read_text())[str(path)][-1] == abc
    second = HashCache(memory, settled_ns=0)
    assert second.sha256(path) == abc
    assert not second.changed
    path.write_text("abcd")
    assert second.sha256(path) != abc
    path.unlink()
    (tmp_path / "other").write_text("x")
    second.sha256(tmp_path / "other")
    second.save()
    assert list(json.loads(memory.read_text())) == [str(tmp_path / "other")]


def test_a_file_just_written_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("abc")
    hashes = HashCache(tmp_path / "hashes.json", settled_ns=10**18)
    hashes.sha256(tmp_path / "file")
    hashes.save()
    assert not (tmp_path / "hashes.json").exists()


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": 5}'])
def test_a_broken_memory_is_only_slow(tmp_path: Path, content: str) -> None:
    (tmp_path / "hashes.json").write_text(content)
    (tmp_path / "file").write_text("abc")
    assert HashCache(tmp_path / "hashes.json").sha256(tmp_path / "file").startswith("ba7816bf")


def test_the_hash_of_a_tree_sees_names_and_contents(tmp_path: Path) -> None:
    hashes = HashCache(tmp_path / "hashes.json")
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    seen = set()
    for name, content in [("a", "1"), ("a", "2"), ("inner/b", "1"), ("inner/c", "1")]:
        (tree / name).write_text(content)
        seen.add(hashes.tree(tree))
    assert len(seen) == 4
    before = hashes.tree(tree)
    (tree / "__pycache__").mkdir()
    (tree / "__pycache__" / "a.pyc").write_text("")
    assert hashes.tree(tree) == before
    (tree / "inner/c").rename(tree / "d")
    assert hashes.tree(tree) != before
