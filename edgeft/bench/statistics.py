"""Intervals and quantiles."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 1000


def bootstrap_interval(n: int, statistic: Callable[[np.ndarray], float], *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a statistic of `n` examples.

    B. Efron and R. J. Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3: n examples are
    drawn with replacement RESAMPLES times, `statistic` maps the drawn indices (n,) to a value. A sample
    without variation gives an interval without width.
    """
    if n == 0:
        return 0.0, 1.0
    generator = np.random.default_rng(seed)
    values = [statistic(generator.integers(0, n, n)) for _ in range(RESAMPLES)]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class RatioInterval:
    """A ratio with its interval, and the standard error a normal logarithm would have with an interval as wide."""

    ratio: float
    low: float
    high: float
    log_se: float


def ratio_interval(ratios: Sequence[float], *, alpha: float) -> RatioInterval | None:
    """Interval of level 1 - alpha for the centre of independent ratios, in the logarithm; None of too few for it.

    Hodges-Lehmann estimate and signed-rank interval: J. L. Hodges and E. L. Lehmann, "Estimates of location based on
    rank tests", Annals of Mathematical Statistics 34 (1963) 598-611; M. Hollander, D. A. Wolfe and E. Chicken,
    "Nonparametric Statistical Methods", third edition (2014), sections 3.2 and 3.3. The estimate is the median of the
    k (k + 1) / 2 averages of two logarithms (or one with itself); the interval leaves out as many of the smallest and
    the largest averages as Wilcoxon's signed-rank statistic falls below with probability alpha / 2. It is exact for
    any symmetric noise, and one wild ratio cannot widen it without bound.
    """
    x = np.log(np.asarray(ratios, dtype=np.float64))
    k = len(x)
    left_out = int(np.searchsorted(_signed_rank_cdf(k), alpha / 2, side="right"))
    if left_out == 0:
        return None
    first, second = np.triu_indices(k)
    averages = np.sort((x[first] + x[second]) / 2)
    low, high = float(averages[left_out - 1]), float(averages[-left_out])
    log_se = (high - low) / 2 / NormalDist().inv_cdf(1 - alpha / 2)
    return RatioInterval(math.exp(float(np.median(averages))), math.exp(low), math.exp(high), log_se)


def _signed_rank_cdf(k: int) -> np.ndarray:
    """P(W <= w) of the sum W of those ranks 1 to `k` whose coin shows heads; (k (k + 1) / 2 + 1,)."""
    share = np.zeros(k * (k + 1) // 2 + 1)
    share[0] = 1.0
    for rank in range(1, k + 1):
        heads = np.roll(share, rank)  # what wraps around is zero: the ranks so far do not sum to so much
        share = (share + heads) / 2
    return np.cumsum(share)


def quantile(samples: Sequence[float], q: float) -> float:
    """Quantile `q` of `samples`, linear between neighbours: type 7 of R. J. Hyndman and Y. Fan, "Sample
    quantiles in statistical packages", The American Statistician 50 (1996) 361-365; numpy's default."""
    return float(np.quantile(np.asarray(samples, dtype=np.float64), q, method="linear"))


def summary(samples: Sequence[float]) -> dict[str, float]:
    """n, mean, p50, p95, min and max of raw samples, in the unit of the samples."""
    return {
        "n": len(samples),
        "mean": float(np.mean(samples)),
        "p50": quantile(samples, 0.50),
        "p95": quantile(samples, 0.95),
        "min": float(min(samples)),
        "max": float(max(samples)),
    }
