"""The child process of `edgeft.bench.products`: torch's matrix products in one thread, FLOP/s as JSON on stdout.

    python -m edgeft.preflight.products

Sides are those of the feed-forward layer of SmolLM2-135M over 2,048 tokens.
"""

import json
import statistics
import time

import torch

from edgeft.bench.noise import Watch, judge

TOKENS, WIDTH, INNER = 2048, 576, 1536
PASSES = 31


def main() -> None:
    """Measure both types."""
    torch.set_num_threads(1)
    watch = Watch()
    found = {name: flops_per_s(getattr(torch, name)) for name in ("bfloat16", "float32")}
    print(json.dumps(found | {"noisy": judge(watch.stop(), [])["noisy"]}))


def flops_per_s(dtype: torch.dtype) -> float:
    """By the median of PASSES products after one unmeasured: a training runs for minutes, not at its best moment."""
    left, right = torch.ones(TOKENS, WIDTH, dtype=dtype), torch.ones(INNER, WIDTH, dtype=dtype)
    times = []
    for _ in range(PASSES + 1):
        started = time.perf_counter()
        torch.nn.functional.linear(left, right)
        times.append(time.perf_counter() - started)
    return 2 * TOKENS * WIDTH * INNER / statistics.median(times[1:])


if __name__ == "__main__":
    main()
