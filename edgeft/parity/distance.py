"""How far one form is from another over all cases."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeft.parity.cases import Case, Taken
from edgeft.parity.numbers import common_prefix, kl_divergence, top1_agrees

END = None
"""Stands for the end of an answer, whichever token it is."""


@dataclass(frozen=True)
class Distance:
    """Over all compared positions; the `worst` fields name the case that is worst by that number."""

    top1_agreement: float
    """Share of positions with the same most likely token."""
    kl_mean: float
    """Nats."""
    kl_p99: float
    """99th percentile, nats."""
    greedy_prefix: float
    """Share of the reference's answer (its end counts as a token) before the first other token, mean."""
    logit_difference_max: float
    """Largest |reference - form| of any logit."""
    worst_top1: int
    worst_kl: int

    def to_json(self) -> dict[str, float | None]:
        """The five numbers; None where a number is not finite."""
        names = ("top1_agreement", "kl_mean", "kl_p99", "greedy_prefix", "logit_difference_max")
        values = {name: float(getattr(self, name)) for name in names}
        return {name: value if np.isfinite(value) else None for name, value in values.items()}


def distance(cases: Sequence[Case], reference: Taken, form: Taken) -> Distance:
    """How far `form` is from `reference`. The vocabularies must have the same size."""
    pairs = [(reference.logits(i), form.logits(i)) for i in range(len(cases))]
    divergences = [kl_divergence(ours, theirs) for ours, theirs in pairs]
    agreements = [top1_agrees(ours, theirs) for ours, theirs in pairs]
    prefixes = [
        common_prefix(_with_end(ours, case.n_gen), _with_end(theirs, case.n_gen))
        for case, ours, theirs in zip(cases, reference.answers, form.answers, strict=True)
    ]
    everywhere = np.concatenate(divergences)
    return Distance(
        top1_agreement=float(np.concatenate(agreements).mean()),
        kl_mean=float(everywhere.mean()),
        kl_p99=float(np.quantile(everywhere, 0.99)),
        greedy_prefix=float(np.mean(prefixes)),
        logit_difference_max=max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs),
        worst_top1=int(np.argmin([row.mean() for row in agreements])),
        worst_kl=int(np.argmax([row.mean() for row in divergences])),
    )


def _with_end(answer: Sequence[int], n_gen: int) -> list[int | None]:
    """The answer, and END where it ended before it was cut."""
    return [*answer, END] if len(answer) < n_gen else list(answer)
