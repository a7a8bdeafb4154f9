"""Intervals against published worked examples and scipy; quantiles against numpy's definition by hand."""

import numpy as np
import pytest
from scipy.stats import binomtest

from edgeft.bench.statistics import bootstrap_interval, quantile, summary, wilson_interval

# R. G. Newcombe, "Two-sided confidence intervals for the single proportion: comparison of seven methods",
# Statistics in Medicine 17 (1998) 857-872, table I, method 3 (score interval, no continuity correction).
NEWCOMBE = [
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0000, 0.1611),
    (1, 29, 0.0061, 0.1718),
]


@pytest.mark.parametrize(("successes", "n", "low", "high"), NEWCOMBE)
def test_wilson_published_examples(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (300, 300), (270, 300), (1, 3080)])
def test_wilson_equals_scipy(successes: int, n: int) -> None:
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson_interval(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_nothing_measured_says_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert bootstrap_interval(0, lambda drawn: 0.5) == (0.0, 1.0)


def test_bootstrap_of_a_mean_is_near_the_normal_interval() -> None:
    # The mean of n values is nearly normal with standard error s / sqrt(n): the textbook interval.
    values = np.random.default_rng(1).uniform(size=400)
    low, high = bootstrap_interval(400, lambda drawn: float(values[drawn].mean()))
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_bootstrap_depends_on_nothing_but_its_seed() -> None:
    values = np.random.default_rng(2).uniform(size=50)
    intervals = {bootstrap_interval(50, lambda drawn: float(values[drawn].mean()), seed=s) for s in (0, 0, 1)}
    assert len(intervals) == 2


def test_quantile_type_7_by_hand() -> None:
    # Four samples, q = 0.95: position 0.95 * 3 = 2.85 between the third (30) and the fourth (70).
    assert quantile([70, 10, 30, 20], 0.95) == pytest.approx(30 + 0.85 * 40)


def test_summary() -> None:
    expected = {"n": 4, "mean": 32.5, "p50": 25.0, "p95": 64.0, "min": 10.0, "max": 70.0}
    assert summary([70, 10, 30, 20]) == pytest.approx(expected)
