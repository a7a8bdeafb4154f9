"""The cache a zip file is unpacked into: used again, repaired, and shared by many who open it at once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgeft.runtime.bundle import Bundle, default_cache, open_bundle
from tests.bundle.building import FILES, write_zip


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return write_zip(tmp_path / "a.edgeft", FILES)


def test_an_unpacked_copy_is_used_again(packed: Path, tmp_path: Path) -> None:
    first = open_bundle(packed, tmp_path / "cache")
    inode = first.model.stat().st_ino
    assert open_bundle(packed, tmp_path / "cache").model.stat().st_ino == inode


@pytest.mark.parametrize("damage", ["changed", "removed", "added"])
def test_a_damaged_copy_is_made_again(packed: Path, tmp_path: Path, damage: str) -> None:
    bundle = open_bundle(packed, tmp_path / "cache")
    if damage == "changed":
        bundle.model.write_bytes(b"evil")
    elif damage == "removed":
        bundle.model.unlink()
    else:
        (bundle.path / "more").write_text("more")
    again = open_bundle(packed, tmp_path / "cache")
    assert again.path == bundle.path
    assert again.model.read_bytes() == FILES["model/tiny.gguf"]
    assert not (again.path / "more").exists()


def test_many_open_it_at_once(packed: Path, tmp_path: Path) -> None:
    def read(_: int) -> tuple[Bundle, bytes]:
        bundle = open_bundle(packed, tmp_path / "cache")
        return bundle, bundle.model.read_bytes()

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(read, range(32)))
    assert {content for _, content in found} == {FILES["model/tiny.gguf"]}
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [found[0][0].path.name]


def test_two_bundles_of_one_name_have_two_places(packed: Path, tmp_path: Path) -> None:
    other = write_zip(tmp_path / "b.edgeft", {**FILES, "README.md": b"# other\n"})
    assert open_bundle(packed, tmp_path / "cache").path != open_bundle(other, tmp_path / "cache").path


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEFT_CACHE", str(tmp_path / "ours"))
    assert default_cache() == tmp_path / "ours"
    monkeypatch.delenv("EDGEFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == tmp_path / "xdg" / "edgeft"
