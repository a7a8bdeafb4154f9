"""Choosing the next token from logits, by llama.cpp's rules, so that every backend draws alike.

The order is that of llama.cpp's chain (`common_sampler_init`): repeat penalty, top_k, top_p, min_p, temperature,
draw. So top_p and min_p see the probabilities before the temperature. Shapes: V entries of the vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Unpack

import numpy as np

from edgeft.errors import RuntimeFault, UsageError
from edgeft.runtime.model import Sampling

Pick = Callable[[np.ndarray, Sequence[int]], int]
"""From logits (V,) and the ids before, prompt and answer, to the next id."""


class _Rules(NamedTuple):
    """`Sampling` with its defaults."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    seed: int = 0


def sampler(**sampling: Unpack[Sampling]) -> Pick:
    """A function that picks a token; temperature 0 takes the largest logit (the first of equals).

    The same seed gives the same draws for the same logits. Raises UsageError for values outside their ranges.
    """
    rules = _Rules(**sampling)
    _check(rules)
    random = np.random.default_rng(rules.seed) if rules.temperature else None  # numpy loads it on first use

    def pick(logits: np.ndarray, ids: Sequence[int] = ()) -> int:
        if rules.repeat_penalty != 1 and rules.repeat_last_n:
            logits = _penalized(logits, ids[-rules.repeat_last_n :], rules.repeat_penalty)
        if random is None:
            return int(logits.argmax())
        order, probabilities = _kept(logits.astype(np.float64), rules)
        return int(random.choice(order, p=probabilities))

    return pick


def _check(rules: _Rules) -> None:
    ranges = {
        "temperature": (rules.temperature >= 0, ">= 0"),
        "top_k": (rules.top_k >= 0, ">= 0"),
        "top_p": (0 < rules.top_p <= 1, "above 0, at most 1"),
        "min_p": (0 <= rules.min_p <= 1, "0 to 1"),
        "repeat_penalty": (rules.repeat_penalty > 0, "> 0"),
        "repeat_last_n": (rules.repeat_last_n >= 0, ">= 0"),
        "seed": (rules.seed >= 0, ">= 0"),
    }
    wrong = [f"{name} {getattr(rules, name)} (must be {range_})" for name, (ok, range_) in ranges.items() if not ok]
    if wrong:
        raise UsageError(f"sampling: {', '.join(wrong)}")


def _penalized(logits: np.ndarray, recent: Sequence[int], penalty: float) -> np.ndarray:
    """A copy in which each of `recent` is less likely: positive logits divided, others multiplied by `penalty`."""
    logits = logits.copy()
    seen = np.unique(np.asarray(recent, dtype=np.int64))
    values = logits[seen]
    logits[seen] = np.where(values > 0, values / penalty, values * penalty)
    return logits


def _kept(scores: np.ndarray, rules: _Rules) -> tuple[np.ndarray, np.ndarray]:
    """Ids that may be drawn, most likely first, and their probabilities. Raises RuntimeFault for NaN."""
    best = np.arange(len(scores))
    if 0 < rules.top_k < len(scores):
        best = np.sort(np.argpartition(-scores, rules.top_k - 1)[: rules.top_k])
    order = best[np.argsort(-scores[best], kind="stable")]
    scores = scores[order] - scores[order[0]]
    if np.isnan(scores[0]):
        raise RuntimeFault("the model's logits are not finite; its file is damaged: export or copy it again")
    weights = np.exp(scores)
    # The last kept token is the one whose addition reaches top_p.
    cumulative = np.cumsum(weights) / weights.sum()
    n_kept = len(order) if rules.top_p == 1 else int(np.searchsorted(cumulative, rules.top_p)) + 1
    n_kept = min(n_kept, int(np.count_nonzero(weights >= rules.min_p)))
    kept = np.exp(scores[:n_kept] / rules.temperature)
    return order[:n_kept], kept / kept.sum()
