"""Intervals against published worked examples and scipy; quantiles against numpy's definition by hand."""

import numpy as np
import pytest
from scipy.stats import binomtest, wilcoxon

from edgeft.bench.shares import wilson_interval
from edgeft.bench.statistics import bootstrap_interval, quantile, ratio_interval, summary

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


def test_ratio_interval_is_the_set_that_wilcoxons_test_does_not_reject() -> None:
    # What an interval is: every centre that scipy's exact signed-rank test finds compatible, and no other.
    ratios = np.exp(np.random.default_rng(3).normal(-0.05, 0.02, 12))
    found = ratio_interval(ratios.tolist(), alpha=0.01)
    assert found is not None

    def rejected(centre: float) -> bool:
        return bool(wilcoxon(np.log(ratios / centre), method="exact").pvalue <= 0.01)

    step = 1e-9
    assert [rejected(found.low * (1 + side * step)) for side in (-1, 1)] == [True, False]
    assert [rejected(found.high * (1 + side * step)) for side in (-1, 1)] == [False, True]


def test_ratio_interval_of_a_worked_example() -> None:
    # Hollander and Wolfe, example 3.3 (depression scores of nine patients): the estimate of the change is -0.46 and
    # its 96 % interval (-0.786, -0.010), the sixth smallest and the sixth largest of the 45 averages.
    before = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
    after = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]
    found = ratio_interval(np.exp(np.subtract(after, before)).tolist(), alpha=0.04)
    assert found is not None
    assert np.log([found.ratio, found.low, found.high]) == pytest.approx([-0.46, -0.786, -0.010], abs=5e-4)


def test_ratio_interval_covers_as_often_as_it_says() -> None:
    # Few runs, heavy tails (Student's t, 3 degrees of freedom): a 1 % interval may miss 2 of 300 at most so often.
    generator = np.random.default_rng(4)
    intervals = [ratio_interval(np.exp(0.02 * generator.standard_t(3, 10)).tolist(), alpha=0.01) for _ in range(300)]
    missed = sum(one is None or not one.low < 1 < one.high for one in intervals)
    assert binomtest(missed, 300, 0.01, alternative="greater").pvalue > 0.01


def test_one_wild_run_does_not_hide_a_slowdown() -> None:
    # Seen in fifteen runs of a real slowdown of one in twenty-one, while other programs came and went.
    ratios = [0.947, 0.955, 0.848, 0.948, 0.948, 0.947, 0.953, 0.952, 0.953, 0.956, 0.944, 0.951, 0.939, 0.954, 0.953]
    found = ratio_interval(ratios, alpha=0.005)
    assert found is not None
    assert found.high < 1
    assert found.ratio == pytest.approx(20 / 21, abs=0.005)


def test_ratio_interval_turns_with_the_sides_and_needs_enough_runs() -> None:
    ratios = [0.93, 0.95, 0.96, 0.94, 0.97, 0.95, 0.99, 0.95]
    one, other = ratio_interval(ratios, alpha=0.01), ratio_interval([1 / r for r in ratios], alpha=0.01)
    assert one is not None
    assert other is not None
    assert (1 / other.ratio, 1 / other.high, 1 / other.low) == pytest.approx((one.ratio, one.low, one.high), rel=1e-12)
    assert ratio_interval(ratios[:7], alpha=0.01) is None
