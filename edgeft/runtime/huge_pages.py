"""Weights on huge pages, where Linux lets a program ask for them.

A token reads every weight once, and with pages of 4 KiB a processor spends a tenth of that time and more on finding
out where they lie. onnxruntime's copies of the weights lie in ordinary memory, so they are moved once they are there.
(numpy asks for huge pages for its arrays as well.)
"""

import contextlib
import ctypes
import mmap
import threading
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np

Range = tuple[int, int]
"""From one address up to another."""
SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
MAPS = Path("/proc/self/maps")
THREAD = "edgeft huge pages"
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25
"""As in Linux' `mman-common.h`; the second is known from 6.1 on."""


@contextlib.contextmanager
def on_huge_pages() -> Iterator[None]:
    """What memory the block takes and keeps is moved to huge pages behind it, by a thread that no one waits for.

    Only blocks that are in use as a whole are moved, so the process grows no larger. Where the system has no huge
    pages, none left, or its owner has switched them off (`never`), nothing happens.
    """
    size = _huge_page_bytes()
    before = _memory() if size else []
    yield
    if size:
        taken = list(_without(_memory(), before))
        threading.Thread(target=_move, args=(taken, size), name=THREAD, daemon=True).start()


def _huge_page_bytes() -> int:
    """0: a program cannot have any."""
    try:
        if "[never]" in (SETTINGS / "enabled").read_text("utf-8"):
            return 0
        return int((SETTINGS / "hpage_pmd_size").read_text("utf-8"))
    except OSError:
        return 0


def _memory() -> list[Range]:
    """The process's own writable memory that is no file's, ascending (`man 5 proc_pid_maps`)."""
    found = []
    for line in MAPS.read_text("utf-8", errors="replace").splitlines():
        addresses, access, _, _, inode, *name = line.split(maxsplit=5)
        if access == "rw-p" and inode == "0" and (not name or name[0] == "[heap]"):
            start, end = addresses.split("-")
            found.append((int(start, 16), int(end, 16)))
    return found


def _without(ranges: list[Range], others: list[Range]) -> Iterator[Range]:
    """The parts of `ranges` outside `others`; both ascend."""
    for start, end in ranges:
        for taken_start, taken_end in others:
            if start < taken_start < end:
                yield start, taken_start
            if taken_start < end and taken_end > start:
                start = taken_end
        if start < end:
            yield start, end


def _move(ranges: list[Range], size: int) -> None:
    """At once, or as the kernel finds time where it is older than 6.1.

    The system may refuse, and memory that has been freed meanwhile is no one's: both leave things as they are.
    """
    libc = ctypes.CDLL(None)
    for start, end in (block for taken in ranges for block in _in_use(libc, taken, size)):
        for advice in (MADV_HUGEPAGE, MADV_COLLAPSE):
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)


def _in_use(libc: ctypes.CDLL, taken: Range, size: int) -> Iterator[Range]:
    """Runs of huge pages within `taken` of which every small page is in memory."""
    start, end = -(-taken[0] // size) * size, taken[1] // size * size
    if start >= end:
        return
    pages = np.zeros((end - start) // mmap.PAGESIZE, np.uint8)
    if libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(end - start), ctypes.c_void_p(pages.ctypes.data)):
        return
    whole = np.logical_and.reduce((pages & 1).reshape(-1, size // mmap.PAGESIZE), axis=1)
    for used, blocks in groupby(range(len(whole)), key=lambda block: bool(whole[block])):
        numbers = list(blocks)
        if used:
            yield start + numbers[0] * size, start + (numbers[-1] + 1) * size
