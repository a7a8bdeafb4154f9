"""The child process of `edgeft.bench.products`: torch's matrix products in one thread, FLOP/s as JSON on stdout.

    python -m edgeft.preflight.products

Sides are those of the feed-forward layer of SmolLM2-135M over 512 tokens.
"""

import json
import statistics

import torch

from edgeft.bench.noise import Watch, judge
from edgeft.bench.passes import pass_seconds

TOKENS, WIDTH, INNER = 512, 576, 1536
LIMIT_S = 0.3


def main() -> None:
    """Measure both types."""
    torch.set_num_threads(1)
    watch = Watch()
    found = {name: flops_per_s(getattr(torch, name)) for name in ("bfloat16", "float32")}
    print(json.dumps(found | {"noisy": judge(watch.stop(), [])["noisy"]}))


def flops_per_s(dtype: torch.dtype) -> float:
    """By the median of the products made in LIMIT_S: a training runs for minutes, not at its best moment."""
    left, right = torch.ones(TOKENS, WIDTH, dtype=dtype), torch.ones(INNER, WIDTH, dtype=dtype)
    times = pass_seconds(lambda: torch.nn.functional.linear(left, right), LIMIT_S)
    return 2 * TOKENS * WIDTH * INNER / statistics.median(times)


if __name__ == "__main__":
    main()
