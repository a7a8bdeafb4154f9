"""Memory the way a training loop wants it."""

import ctypes
import os
import sys

PRIMITIVES = 32
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h> of glibc
KEPT_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of returning it to the kernel after every tensor.

    By default each activation above 128 KiB … 32 MiB is a fresh mapping whose pages fault in one by one, every
    step; kept memory made a 7 M-parameter training step 1.4 × faster on two cores. Without glibc it does nothing.

    oneDNN, which multiplies bfloat16 on processors, keeps kernels of some megabytes for each of the last 1024
    shapes, and hardly any two batches have the same number of tokens. It is asked to keep those of a step, unless
    the environment says otherwise: 1.35 GB instead of 1.77 after 74 steps of a 7 M-parameter model, as fast.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRIMITIVES))  # read at the first product
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
