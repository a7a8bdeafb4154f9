"""Moving memory to huge pages. The oracle is the kernel's own account of the process, /proc/self/smaps."""

import mmap
import threading
from pathlib import Path

import pytest

from edgeft.runtime import huge_pages
from edgeft.runtime.huge_pages import on_huge_pages

N_BYTES = 32 << 20
LAST_USED = 20 << 20
pytestmark = pytest.mark.skipif(not huge_pages._huge_page_bytes(), reason="no huge pages here")


def taken(n_used: int) -> mmap.mmap:
    """Memory of which the first bytes have been written, page by page: malloc may keep a large copy, and it counts."""
    memory = mmap.mmap(-1, N_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for start in range(0, n_used, mmap.PAGESIZE):
        memory[start : start + mmap.PAGESIZE] = bytes(range(256)) * (mmap.PAGESIZE // 256)
    return memory


def moved() -> None:
    for thread in threading.enumerate():
        if thread.name == huge_pages.THREAD:
            thread.join()


def account(key: str) -> int:
    """Bytes of the process under a key of smaps."""
    rows = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(row.split()[1]) << 10 for row in rows if row.startswith(f"{key}:"))


def test_memory_of_the_block_is_moved_and_nothing_else() -> None:
    outside = taken(N_BYTES)
    with on_huge_pages():
        inside = taken(LAST_USED)
    before, rss = account("AnonHugePages"), account("Rss")
    moved()
    gained = account("AnonHugePages") - before
    if not gained:
        pytest.skip("the kernel moves pages only as it finds time, or has no huge ones left")
    assert LAST_USED - (8 << 20) <= gained <= LAST_USED, "what is used, but not the other memory of as many bytes"
    assert account("Rss") < rss + (2 << 20), "what is not used stays untouched"
    assert inside[:LAST_USED] == bytes(range(256)) * (LAST_USED // 256)
    outside.close()
    inside.close()


def test_memory_that_has_gone_meanwhile_does_no_harm() -> None:
    with on_huge_pages():
        memory = taken(N_BYTES)
    memory.close()
    moved()


def test_huge_pages_that_are_switched_off_stay_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    monkeypatch.setattr(huge_pages, "SETTINGS", tmp_path)
    with on_huge_pages():
        memory = taken(N_BYTES)
    assert not any(thread.name == huge_pages.THREAD for thread in threading.enumerate())
    memory.close()


def test_a_system_without_them_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "SETTINGS", tmp_path / "absent")
    assert huge_pages._huge_page_bytes() == 0


@pytest.mark.parametrize(
    ("ranges", "others", "left"),
    [
        ([(0, 9)], [], [(0, 9)]),
        ([(0, 9)], [(0, 9)], []),
        ([(0, 9)], [(2, 4)], [(0, 2), (4, 9)]),
        ([(0, 9)], [(0, 2), (4, 5), (8, 9)], [(2, 4), (5, 8)]),
        ([(3, 9)], [(0, 4), (8, 12)], [(4, 8)]),
        ([(0, 2), (4, 9)], [(1, 6)], [(0, 1), (6, 9)]),
        ([(4, 6)], [(0, 4), (6, 9)], [(4, 6)]),
    ],
)
def test_what_was_there_before_is_left_out(
    ranges: list[tuple[int, int]], others: list[tuple[int, int]], left: list[tuple[int, int]]
) -> None:
    assert list(huge_pages._without(ranges, others)) == left
