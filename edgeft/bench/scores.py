"""One metric over a set of examples: its value, its interval, and the outcome of every example."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeft.bench.shares import wilson_interval
from edgeft.bench.statistics import bootstrap_interval


@dataclass(frozen=True)
class Score:
    """One metric over one set of examples.

    `value` and `ci95` are in 0..1; `interval` names the method of `ci95`; `outcomes` has one number in 0..1
    for each example, None for one the metric does not count; `n` is the number counted; `detail` holds
    numbers that explain the value.
    """

    metric: str
    value: float
    n: int
    ci95: tuple[float, float]
    interval: str
    outcomes: tuple[float | None, ...]
    detail: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return {
            "metric": self.metric,
            "value": self.value,
            "n": self.n,
            "ci95": list(self.ci95),
            "interval": self.interval,
            "detail": self.detail,
            "outcomes": [int(o) if o in (0, 1) and o is not None else o for o in self.outcomes],
        }


def share_score(metric: str, outcomes: Sequence[float | None]) -> Score | None:
    """The share of yes among outcomes of 0, 1 or None (not counted); None when nothing counts."""
    counted = [outcome for outcome in outcomes if outcome is not None]
    if not counted:
        return None
    hits, n = sum(counted), len(counted)
    return Score(metric, hits / n, n, wilson_interval(hits, n), "wilson", tuple(outcomes))


def mean_score(metric: str, outcomes: Sequence[float | None]) -> Score | None:
    """The mean of outcomes in 0..1 or None (not counted), with a bootstrap interval; None when nothing counts."""
    counted = np.array([outcome for outcome in outcomes if outcome is not None], dtype=np.float64)
    if not len(counted):
        return None
    interval = bootstrap_interval(len(counted), lambda drawn: float(counted[drawn].mean()))
    return Score(metric, float(counted.mean()), len(counted), interval, "bootstrap", tuple(outcomes))
