"""The child process of `roofline`: two numpy kernels in N threads, their best rates as JSON on stdout.

    python -m edgeft.bench.roofline_kernels 2

Reading: x @ x over float32 arrays far larger than the caches, each thread its own; bytes of x a second. It is what
one program gets from memory with plain loads, not the sum of the chips' ratings.
Multiply-adds: C = A @ B, fp32, N³ multiply-adds each, every thread its own. It is numpy's BLAS at fp32; a runtime that
multiplies integers or bfloat16 may do more, so a share above 1 is possible.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from edgeft.bench.noise import Watch, judge
from edgeft.bench.passes import pass_seconds

READ_BYTES = 256 << 20  # of all threads together: several times the last-level cache of all but the largest servers
SIDE = 1024
LIMIT_S = 0.4
"""Of each kernel. Its best pass counts: a peak is what the machine can do undisturbed."""


def main() -> None:
    """Measure with as many threads as the first argument says."""
    n_threads = int(sys.argv[1])
    arrays = [np.ones(READ_BYTES // 4 // n_threads, np.float32) for _ in range(n_threads)]
    matrices = [np.ones((SIDE, SIDE), np.float32) for _ in range(n_threads)]
    products = [np.empty((SIDE, SIDE), np.float32) for _ in range(n_threads)]
    watch = Watch()
    with ThreadPoolExecutor(n_threads) as pool:
        read = min(pass_seconds(lambda: list(pool.map(lambda x: float(x @ x), arrays)), LIMIT_S))
        multiply = min(
            pass_seconds(lambda: list(pool.map(lambda a, c: np.matmul(a, a, out=c), matrices, products)), LIMIT_S)
        )
    result = {
        "read_bytes_per_s": sum(array.nbytes for array in arrays) / read,
        "multiply_adds_per_s": n_threads * SIDE**3 / multiply,
        "noisy": judge(watch.stop(), [])["noisy"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
