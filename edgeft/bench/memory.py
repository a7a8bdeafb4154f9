"""Memory of this process, and how much of a model's files the system holds in its page cache."""

import ctypes
import mmap
from collections.abc import Iterable
from pathlib import Path

from edgeft.machine.files import forget_pages

WEIGHTS = (".gguf", ".onnx", ".data", ".onnx_data", ".safetensors", ".bin", ".pt")
ROLLUP = Path("/proc/self/smaps_rollup")


def files_of(model: Path) -> list[Path]:
    """The model file itself, or every file under a model folder."""
    return sorted(path for path in model.rglob("*") if path.is_file()) if model.is_dir() else [model]


def size_bytes(model: Path) -> int:
    """Bytes of the weights: the model file, or the files of a folder with an ending of WEIGHTS."""
    files = files_of(model)
    weights = [path for path in files if path.suffix in WEIGHTS] or files
    return sum(path.stat().st_size for path in weights)


def bundle_bytes(model: Path) -> int:
    """Bytes of all that has to be shipped: the model file, or every file of its folder."""
    return sum(path.stat().st_size for path in files_of(model))


def pss_bytes(rollup: Path = ROLLUP) -> int | None:
    """Proportional set size of this process now: each page divided by the processes that map it.

    `Pss` of /proc/self/smaps_rollup; None where the system has none.
    """
    try:
        lines = rollup.read_text("utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), None)


def evict(files: Iterable[Path]) -> bool:
    """Ask the system to forget its cached pages of `files`; whether it could be asked.

    posix_fadvise(POSIX_FADV_DONTNEED): pages that another process maps, or that are not yet on disk, stay. What
    came of it is `cached_share`'s to say.
    """
    return all(forget_pages(path) for path in files)


def cached_share(files: Iterable[Path]) -> float | None:
    """Share (0 to 1) of the pages of `files` that are in the page cache; None where mincore(2) is not there."""
    held = pages = 0
    for path in files:
        if path.stat().st_size == 0:
            continue
        flags = _resident(path)
        if flags is None:
            return None
        held += sum(flag & 1 for flag in flags)
        pages += len(flags)
    return held / pages if pages else None


def _resident(path: Path) -> bytes | None:
    """One byte for each page of the file, its lowest bit set when the page is in memory."""
    try:
        mincore = ctypes.CDLL(None, use_errno=True).mincore
    except (OSError, AttributeError, TypeError):
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        flags = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(mapped)  # the address of a mapping can only be had of a writable one
        status = mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapped)), flags)
        del start
    return bytes(flags) if status == 0 else None
