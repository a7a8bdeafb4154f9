"""Choosing the next token from logits."""

from collections.abc import Callable

import numpy as np

from edgeft.errors import UsageError


def sampler(
    *, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0
) -> Callable[[np.ndarray], int]:
    """A function from logits (V,) to a token id.

    Temperature 0 takes the largest logit (the first of equals). Otherwise the logits are divided by
    `temperature`, cut to the `top_k` largest (0: all), then to the smallest set whose probability reaches
    `top_p` (1: all), and one is drawn; the same seed gives the same draws. Raises UsageError for values
    outside these ranges.
    """
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise UsageError(
            f"temperature {temperature}, top_k {top_k}, top_p {top_p}: "
            "need temperature >= 0, top_k >= 0 and 0 < top_p <= 1"
        )
    if temperature == 0:
        return lambda logits: int(np.argmax(logits))
    random = np.random.default_rng(seed)

    def draw(logits: np.ndarray) -> int:
        order, probabilities = _kept(logits.astype(np.float64) / temperature, top_k, top_p)
        return int(random.choice(order, p=probabilities))

    return draw


def _kept(scores: np.ndarray, top_k: int, top_p: float) -> tuple[np.ndarray, np.ndarray]:
    """Ids that may be drawn, most likely first, and their probabilities."""
    order = np.argsort(-scores, kind="stable")[: top_k or None]
    weights = np.exp(scores[order] - scores[order[0]])
    cumulative = np.cumsum(weights) / weights.sum()
    # The last kept token is the one whose addition reaches top_p.
    n_kept = len(order) if top_p == 1 else int(np.searchsorted(cumulative, top_p)) + 1
    kept = weights[:n_kept]
    return order[:n_kept], kept / kept.sum()
