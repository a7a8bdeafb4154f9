"""How far the inputs of an encoder's products reach on calibration texts: what static int8 rounds them to.

`minmax` holds every value seen. `percentile` leaves out the farthest `TAIL` on each side. `entropy` clips where the
rounded values say least wrong about the distribution (S. Migacz, "8-bit inference with TensorRT", GTC 2017): the
Kullback-Leibler divergence of the clipped values' histogram from the same with each code's share spread evenly over
its bins. onnxruntime's calibrators are not used: by default theirs has as many bins as codes, so that nothing is ever
clipped, and with more bins it cuts the spread counts to whole numbers.

Two passes: the first finds how far each input reaches, the second counts into `BINS` bins of that reach, so the result
does not depend on the order of the texts.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from edgeft.export.onnx.encoder_products import Range

CalibrateMethod = Literal["minmax", "percentile", "entropy"]
BINS, CODES = 2048, 256
TAIL = 1e-5
"""onnxruntime's 99.999th percentile, on each side."""

Values = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Histogram:
    """How often an input had which values, in `BINS` bins of equal width from `low` to `high`."""

    low: float
    high: float
    counts: np.ndarray
    """(BINS,) int64."""

    @property
    def edges(self) -> np.ndarray:
        """(BINS + 1,) float64."""
        return np.linspace(self.low, self.high, len(self.counts) + 1)


def find_ranges(runs: "Runs", method: CalibrateMethod) -> dict[str, Range]:
    """The range of every input that `runs` yields."""
    reach: dict[str, Range] = {}
    for values in runs:
        for name, array in values.items():
            low, high = float(array.min()), float(array.max())
            known = reach.get(name, Range(low, high))
            reach[name] = Range(min(known.low, low), max(known.high, high))
    if method == "minmax":
        return reach
    choose = percentile_range if method == "percentile" else entropy_range
    return {name: choose(histogram) for name, histogram in _count(runs, reach).items()}


def percentile_range(histogram: Histogram) -> Range:
    """Between the `TAIL` and the 1 - `TAIL` quantile, to the next edge outwards."""
    share = np.concatenate([[0.0], np.cumsum(histogram.counts) / histogram.counts.sum()])
    left = int(np.searchsorted(share, TAIL, side="right")) - 1
    right = int(np.searchsorted(share, 1 - TAIL, side="left"))
    edges = histogram.edges
    return Range(float(edges[left]), float(edges[min(right, len(edges) - 1)]))


def entropy_range(histogram: Histogram) -> Range:
    """The symmetric clip |x| <= t, cut to what was seen, with the least divergence; the widest of equals."""
    edges = histogram.edges
    reach = max(abs(histogram.low), abs(histogram.high))
    limits = reach * np.arange(CODES // 2, 0, -1) / (CODES // 2)
    candidates = [Range(max(histogram.low, -limit), min(histogram.high, limit)) for limit in limits]
    return min(candidates, key=lambda candidate: _divergence(histogram.counts, edges, candidate))


def _divergence(counts: np.ndarray, edges: np.ndarray, clip: Range) -> float:
    """KL(clipped ‖ rounded) in nats, over the bins whose middle lies in the clip."""
    middles = (edges[:-1] + edges[1:]) / 2
    inside = np.flatnonzero((middles >= clip.low) & (middles <= clip.high))
    if len(inside) < 2:
        return float("inf")
    kept = counts[inside].astype(np.float64)
    clipped = kept.copy()
    clipped[0] += counts[: inside[0]].sum()
    clipped[-1] += counts[inside[-1] + 1 :].sum()
    scale, zero_point = clip.grid()
    codes = np.clip(np.rint(middles[inside] / scale) + zero_point, 0, CODES - 1).astype(int)
    share = np.bincount(codes, weights=kept, minlength=CODES)
    bins = np.bincount(codes, weights=clipped > 0, minlength=CODES)
    spread = np.where(clipped > 0, share[codes] / np.maximum(bins[codes], 1), 0.0)
    p, q = clipped / clipped.sum(), spread / spread.sum() if spread.sum() else spread
    real = p > 0
    with np.errstate(divide="ignore"):
        return float((p[real] * (np.log(p[real]) - np.log(q[real]))).sum())


def _count(runs: "Runs", reach: Mapping[str, Range]) -> dict[str, Histogram]:
    counts = {name: np.zeros(BINS, np.int64) for name in reach}
    for values in runs:
        for name, array in values.items():
            counts[name] += np.histogram(array, BINS, (reach[name].low, reach[name].high))[0]
    return {name: Histogram(reach[name].low, reach[name].high, counts[name]) for name in reach}


@dataclass(frozen=True)
class Runs:
    """The inputs of products, text by text; every iteration runs `session` anew.

    `inputs` names the output of `session` that each product's input is given out as; its channels are divided by
    `scalings` (K,), where there are some. One text at a time: padding would be counted like words.
    """

    session: Any
    inputs: Mapping[str, str]
    feeds: Sequence[Mapping[str, np.ndarray]]
    scalings: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Values]:
        for feed in self.feeds:
            found: Iterable[np.ndarray] = self.session.run(list(self.inputs.values()), dict(feed))
            values = dict(zip(self.inputs, found, strict=True))
            yield values | {name: values[name] / scaling for name, scaling in self.scalings.items()}
