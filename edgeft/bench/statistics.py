"""Intervals and quantiles."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
RATIO_RESAMPLES = 4000
FEWEST_RATIOS = 6


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
    """A geometric mean ratio with its interval, and the standard error of its natural logarithm."""

    ratio: float
    low: float
    high: float
    log_se: float


def ratio_interval(ratios: Sequence[float], *, alpha: float, seed: int = 0) -> RatioInterval:
    """Interval of level 1 - alpha for the geometric mean of independent ratios, symmetric in the logarithm.

    Symmetric bootstrap-t: P. Hall, "On symmetric bootstrap confidence intervals", Journal of the Royal Statistical
    Society B 50 (1988) 35-45. The logarithms x are drawn with replacement; the 1 - alpha quantile of
    |mean(x*) - mean(x)| / (s(x*) / sqrt(k)) replaces Student's quantile. Raises ValueError below
    FEWEST_RATIOS: too many draws would then be of one value, without a spread.
    """
    x = np.log(np.asarray(ratios, dtype=np.float64))
    k = len(x)
    if k < FEWEST_RATIOS:
        raise ValueError(f"an interval needs at least {FEWEST_RATIOS} ratios")
    centre, log_se = float(x.mean()), float(x.std(ddof=1)) / math.sqrt(k)
    drawn = x[np.random.default_rng(seed).integers(0, k, (RATIO_RESAMPLES, k))]
    errors = drawn.std(axis=1, ddof=1) / math.sqrt(k)
    tiny = 1e-9 * max(log_se, 1e-9)  # a draw of k equal values says nothing about the spread
    half = float(np.quantile(np.abs(drawn.mean(axis=1) - centre) / np.maximum(errors, tiny), 1 - alpha)) * log_se
    return RatioInterval(math.exp(centre), math.exp(centre - half), math.exp(centre + half), log_se)


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
