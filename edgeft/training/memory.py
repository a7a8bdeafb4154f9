"""Memory the way a training loop wants it."""

import ctypes
import os
import sys

PRIMITIVES = 32
CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h> of glibc
KEPT_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of returning it to the kernel after every tensor.

    By default each activation above 128 KiB … 32 MiB is a fresh mapping whose pages fault in one by one, every
    step; kept memory made a 7 M-parameter training step 1.4 × faster on two cores. Without glibc it does nothing.

    oneDNN, which multiplies bfloat16 on processors, keeps kernels of some megabytes for each of the last 1024
    shapes, torch's layer over it as many more, and hardly any two batches have the same number of tokens. Both are
    asked to keep those of a step, unless the environment says otherwise: after 42 steps of a 7 M-parameter model 0.95
    GB instead of 1.4, and no more with every step, as fast.
    """
    for cache in CACHES:
        os.environ.setdefault(cache, str(PRIMITIVES))  # read at the first product
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
