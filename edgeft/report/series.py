"""Raw samples and logs reduced to what a chart shows, so that the report holds no raw sample and still a curve."""

from collections.abc import Mapping, Sequence
from typing import Any

BINS = 40
POINTS = 300
TAIL = 0.995  # what lies above this quantile is counted, not drawn: one stall would flatten everything else


def distribution(samples: Sequence[float]) -> dict[str, Any] | None:
    """Histogram and distribution function of samples, in their unit; None without samples.

    `edges` (B + 1) and `counts` (B) of bins of one width from the smallest sample to the quantile TAIL, `above` the
    count beyond, and `quantiles` (101), linear between neighbours, for 0, 1, ... 100 %.
    """
    if not samples:
        return None
    ordered = sorted(samples)
    low, high = ordered[0], _quantile(ordered, TAIL)
    width = (high - low) / BINS or 1.0
    counts = [0] * BINS
    above = 0
    for sample in ordered:
        if sample > high:
            above += 1
        else:
            counts[min(int((sample - low) / width), BINS - 1)] += 1
    return {
        "n": len(ordered),
        "edges": [low + place * width for place in range(BINS + 1)],
        "counts": counts,
        "above": above,
        "quantiles": [_quantile(ordered, percent / 100) for percent in range(101)],
    }


def curve(rows: Sequence[Mapping[str, Any]], name: str) -> list[list[float]]:
    """[step, value] of the rows that have both; more than POINTS become means over neighbours."""
    pairs = [(float(row["step"]), float(row[name])) for row in rows if row.get(name) is not None and "step" in row]
    size = -(-len(pairs) // POINTS)
    groups = [pairs[start : start + size] for start in range(0, len(pairs), size or 1)]
    return [[group[-1][0], sum(value for _, value in group) / len(group)] for group in groups]


def _quantile(ordered: Sequence[float], q: float) -> float:
    """Type 7 of Hyndman and Fan, as `edgeft.bench.statistics.quantile`, which needs numpy."""
    place = q * (len(ordered) - 1)
    below = min(int(place), len(ordered) - 2) if len(ordered) > 1 else 0
    last = ordered[min(below + 1, len(ordered) - 1)]
    return ordered[below] + (place - below) * (last - ordered[below])
