"""Ranges and scalings for int8, against their definitions written out in float64."""

import math
from typing import Any

import numpy as np
import pytest

from edgeft.export.onnx.encoder_products import Range
from edgeft.export.onnx.encoder_ranges import Histogram, Runs, entropy_range, find_ranges, percentile_range
from edgeft.export.onnx.encoder_scalings import best_scaling, find_scalings
from edgeft.export.onnx.int8_columns import quantize_pairs


class _Session:
    """Gives out what it is fed."""

    def run(self, names: list[str], feed: dict[str, Any]) -> list[np.ndarray]:
        return [feed[name] for name in names]


def runs(**arrays: list[np.ndarray]) -> Runs:
    n = len(next(iter(arrays.values())))
    feeds = [{name: each[at] for name, each in arrays.items()} for at in range(n)]
    return Runs(_Session(), {name: name for name in arrays}, feeds)


def test_minmax_holds_all_that_was_seen() -> None:
    random = np.random.default_rng(0)
    pieces = [random.normal(size=(1, 4, 8)).astype(np.float32) for _ in range(5)]
    found = find_ranges(runs(x=pieces), "minmax")["x"]
    assert (found.low, found.high) == (min(map(np.min, pieces)), max(map(np.max, pieces)))


@pytest.mark.parametrize(("low", "high"), [(-3.0, 5.0), (0.5, 4.0), (-2.0, -1.0), (0.0, 0.0)])
def test_a_range_is_widened_to_hold_zero_and_zero_has_a_code(low: float, high: float) -> None:
    scale, zero_point = Range(low, high).grid()
    assert 0 <= zero_point <= 255
    assert (0 - zero_point) * scale <= low + scale / 2
    assert (255 - zero_point) * scale >= high - scale / 2


def test_the_percentile_is_that_of_the_values() -> None:
    values = np.random.default_rng(1).standard_t(3, size=2_000_000)
    counts, edges = np.histogram(values, 2048)
    found = percentile_range(Histogram(float(edges[0]), float(edges[-1]), counts))
    width = edges[1] - edges[0]
    exact = np.quantile(values, [1e-5, 1 - 1e-5])
    assert exact[0] - width <= found.low <= exact[0]
    assert exact[1] <= found.high <= exact[1] + width


def divergence(counts: np.ndarray, edges: np.ndarray, limit: float) -> float:
    """KL of the clipped histogram from what 256 codes leave of it, one bin after the other."""
    low, high = max(edges[0], -limit), min(edges[-1], limit)
    step = (max(high, 0) - min(low, 0)) / 255
    zero = round(-min(low, 0) / step)
    inside = [at for at in range(len(counts)) if low <= (edges[at] + edges[at + 1]) / 2 <= high]
    clipped = [float(counts[at]) for at in inside]
    clipped[0] += float(sum(counts[: inside[0]]))
    clipped[-1] += float(sum(counts[inside[-1] + 1 :]))
    by_code: dict[int, list[int]] = {}
    for place, at in enumerate(inside):
        code = min(255, max(0, round((edges[at] + edges[at + 1]) / 2 / step) + zero))
        by_code.setdefault(code, []).append(place)
    spread = [0.0] * len(inside)
    for places in by_code.values():
        filled = [place for place in places if clipped[place] > 0]
        for place in filled:
            spread[place] = sum(float(counts[inside[each]]) for each in places) / len(filled)
    pairs = [(c / sum(clipped), s / sum(spread)) for c, s in zip(clipped, spread, strict=True) if c > 0]
    return math.fsum(c * math.log(c / s) if s > 0 else math.inf for c, s in pairs)


@pytest.mark.parametrize("outlier", [None, 40.0])
def test_entropy_clips_where_the_divergence_is_least(outlier: float | None) -> None:
    values = np.random.default_rng(2).normal(size=20_000)
    if outlier:
        values[:3] = outlier
    counts, edges = np.histogram(values, 512)
    found = entropy_range(Histogram(float(edges[0]), float(edges[-1]), counts))
    reach = np.abs(values).max()
    limits = [reach * part / 128 for part in range(128, 0, -1)]
    least = min(divergence(counts, edges, limit) for limit in limits if limit > 2 * (edges[1] - edges[0]))
    ours = divergence(counts, edges, max(-found.low, found.high))
    assert ours == pytest.approx(least, rel=0.02)
    assert found.high < 30


def test_far_channels_are_brought_down_and_the_product_stays() -> None:
    random = np.random.default_rng(3)
    rows = random.normal(size=(64, 32)).astype(np.float32)
    rows[:, 5] *= 40
    weight = random.normal(size=(32, 16)).astype(np.float32)
    scaling = best_scaling(rows, rows.min(axis=0), rows.max(axis=0), weight)
    assert scaling is not None
    assert scaling.argmax() == 5
    assert scaling.min() == 1
    exact = rows.astype(np.float64) @ weight
    np.testing.assert_allclose((rows / scaling) @ (weight * scaling[:, None]), exact, rtol=1e-3, atol=1e-3)

    def error(factors: np.ndarray) -> float:
        inputs, (codes, scales) = rows / factors, quantize_pairs(weight * factors[:, None])
        step = (max(inputs.max(), 0) - min(inputs.min(), 0)) / 255
        zero = np.rint(-min(inputs.min(), 0) / step)
        rounded = (np.clip(np.rint(inputs / step) + zero, 0, 255) - zero) * np.float64(step)
        return float(np.square(rounded @ (codes * scales.astype(np.float64)) - exact).mean())

    assert error(scaling) < error(np.ones(32, np.float32)) / 4
    weights = {"far": weight, "even": weight}
    found = find_scalings(runs(far=[rows[:40], rows[40:]], even=[np.sign(rows)[:40], np.sign(rows)[40:]]), weights)
    np.testing.assert_array_equal(found["far"], scaling)
    assert "even" not in found
