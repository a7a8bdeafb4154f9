"""Shares of yes-or-no outcomes: intervals of one, of the difference of two, and the exact paired test.

Standard library only: the report computes with it where numpy is not installed.
"""

import math
from collections.abc import Sequence

Z95 = 1.959963984540054  # quantile 0.975 of the standard normal distribution


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """95 % score interval of a share of `successes` among `n` trials.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the
    American Statistical Association 22 (1927) 209-212, without continuity correction:
    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n). It stays inside 0..1 and does not collapse at 0 or n.
    """
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    denominator = 1 + Z95**2 / n
    centre = (share + Z95**2 / (2 * n)) / denominator
    half = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n * n)) / denominator
    return max(0.0, centre - half), min(1.0, centre + half)


def difference_interval(a: float, ci_a: Sequence[float], b: float, ci_b: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a - b for independent a and b with their own 95 % intervals (l, u).

    a - b - √((a - l_a)² + (u_b - b)²) to a - b + √((u_a - a)² + (b - l_b)²): with Wilson's intervals method 10 of
    R. G. Newcombe, "Interval estimation for the difference between independent proportions: comparison of eleven
    methods", Statistics in Medicine 17 (1998) 873-890; for others G. Y. Zou and A. Donner, "Construction of
    confidence limits about effect measures: a general approach", Statistics in Medicine 27 (2008) 1693-1702.
    """
    (low_a, high_a), (low_b, high_b) = ci_a, ci_b
    return a - b - math.hypot(a - low_a, high_b - b), a - b + math.hypot(high_a - a, b - low_b)


def paired_interval(both: int, only_a: int, only_b: int, neither: int) -> tuple[float, float]:
    """95 % interval of the difference a - b of two shares over the same examples.

    Method 10 of R. G. Newcombe, "Improved confidence intervals for the difference between binomial proportions
    based on paired data", Statistics in Medicine 17 (1998) 2635-2650: as `difference_interval`, less the part that
    the correlation φ of the pairs takes away; φ's numerator is reduced by n/2, to no less than 0, where positive.
    """
    n = both + only_a + only_b + neither
    hits_a, hits_b = both + only_a, both + only_b
    a, b = hits_a / n, hits_b / n
    (low_a, high_a), (low_b, high_b) = wilson_interval(hits_a, n), wilson_interval(hits_b, n)
    margins = hits_a * (n - hits_a) * hits_b * (n - hits_b)
    above = both * neither - only_a * only_b
    above_corrected = max(above - n / 2, 0) if above > 0 else above
    phi = above_corrected / math.sqrt(margins) if margins else 0.0

    def half(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))

    return a - b - half(a - low_a, high_b - b), a - b + half(high_a - a, b - low_b)


def mcnemar_p(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value of McNemar's test: how likely a split of the discordant pairs at least as uneven is
    when each goes either way with equal chance, 2 P(X ≤ min) for X ~ Binomial(only_a + only_b, 1/2), at most 1.

    Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12 (1947) 153-157; computed in whole numbers.
    """
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**n)
