"""A child process: numpy's float32 products in one thread, FLOP/s as JSON on stdout.

    python -m edgeft.bench.float32_products

It stands for torch, whose float32 products are as fast on the machines tried (AVX2: 61 and 58 GFLOP/s a core), but
which takes ten times longer to load. The clock is the processor's, so waiting for a core does not count. Sides are
those of the feed-forward layer of SmolLM2-135M over 2,048 tokens.
"""

import json
import os
import statistics
import time

from edgeft.bench.noise import Watch, judge
from edgeft.bench.passes import pass_seconds
from edgeft.machine.instruction_sets import effective_instruction_sets, instruction_sets

TOKENS, WIDTH, INNER = 2048, 576, 1536
LIMIT_S = 0.6


def main() -> None:
    """Measure, and say what was found."""
    if "avx512f" in set(instruction_sets()) - set(effective_instruction_sets()):
        os.environ["OPENBLAS_CORETYPE"] = "Haswell"  # what is hidden from torch is hidden from its stand-in
    import numpy as np

    left, right = np.ones((TOKENS, WIDTH), np.float32), np.ones((WIDTH, INNER), np.float32)
    product = np.empty((TOKENS, INNER), np.float32)
    watch = Watch()
    times = pass_seconds(lambda: np.matmul(left, right, out=product), LIMIT_S, clock=time.process_time)
    found = {"float32": 2 * TOKENS * WIDTH * INNER / statistics.median(times)}
    print(json.dumps(found | {"noisy": judge(watch.stop(), [])["noisy"]}))


if __name__ == "__main__":
    main()
