"""What a closed model leaves behind in the process."""

import ctypes
import sys


def give_back() -> None:
    """Return memory that was freed to the system, where the C library keeps it by itself (glibc).

    Weights, caches and vocabularies come and go in pieces of every size; without this, a process that opened and
    closed a model a thousand times held 17 MB more than after the first time. It takes a millisecond.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)
