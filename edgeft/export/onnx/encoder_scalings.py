"""Evening out the channels of a product's inputs before they are rounded to int8.

One scale for a whole tensor is set by the few channels that reach far, and leaves little of it for the rest. So far
channels are divided by a factor, and the rows of the weights they meet multiplied by it, which rounds better because
weights have a scale for every output (G. Xiao et al., "SmoothQuant", 2022). Here only channels that reach beyond a
quantile of all are brought down to it, and the quantile is the one of `QUANTILES` whose rounded product is nearest to
the exact one on calibration texts; none where that is nearest as it is.

Shapes: n rows (tokens), K inputs, N outputs.
"""

from collections.abc import Mapping

import numpy as np

from edgeft.export.onnx.encoder_products import Range
from edgeft.export.onnx.encoder_ranges import Runs
from edgeft.export.onnx.int8_columns import LARGEST, Quantizer, quantize_pairs

QUANTILES = (0.25, 0.5, 0.75, 0.9, 0.98)
SAMPLED_ROWS = 256
"""Tokens that products are compared on; how far channels reach is measured on all."""


def find_scalings(
    runs: Runs, weights: Mapping[str, np.ndarray], quantize: Quantizer = quantize_pairs
) -> dict[str, np.ndarray]:
    """What to divide the channels of each product's input by, (K,) float32, by name; products that need none are
    left out. `weights` are float32 (K, N), rounded by `quantize`."""
    lows: dict[str, np.ndarray] = {}
    highs: dict[str, np.ndarray] = {}
    samples: dict[str, list[np.ndarray]] = {}
    for values in runs:
        for name, array in values.items():
            rows = array.reshape(-1, array.shape[-1])
            low, high = rows.min(axis=0), rows.max(axis=0)
            lows[name] = np.minimum(lows.get(name, low), low)
            highs[name] = np.maximum(highs.get(name, high), high)
            held = sum(map(len, samples.setdefault(name, [])))
            samples[name].append(rows[: SAMPLED_ROWS - held].copy())
    found = {
        name: best_scaling(np.concatenate(rows), lows[name], highs[name], weights[name], quantize)
        for name, rows in samples.items()
    }
    return {name: scaling for name, scaling in found.items() if scaling is not None}


def best_scaling(
    rows: np.ndarray, low: np.ndarray, high: np.ndarray, weight: np.ndarray, quantize: Quantizer = quantize_pairs
) -> np.ndarray | None:
    """The scaling (K,) under which `rows` (n, K) times `weight` (K, N) loses least by rounding; None: as it is.

    `low` and `high` (K,) are the least and greatest values of each channel.
    """
    reach = np.maximum(np.abs(low), np.abs(high))
    candidates: list[np.ndarray] = [np.ones_like(reach)]
    for quantile in QUANTILES:
        usual = np.quantile(reach, quantile)
        if usual > 0:
            candidates.append(np.maximum(1, reach / usual).astype(np.float32))
    exact = rows @ weight
    errors = []
    for each in candidates:
        ours = _rounded(rows / each, low / each, high / each, quantize(weight * each[:, None]))
        errors.append(float(np.square(ours - exact).mean()))
    best = int(np.argmin(errors))
    return candidates[best] if best else None


def _rounded(rows: np.ndarray, low: np.ndarray, high: np.ndarray, columns: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """`rows` (n, K) times the weights `columns` (codes and scales) as int8 computes it, with the input's range over
    all channels."""
    codes, scales = columns
    scale, zero_point = Range(float(low.min()), float(high.max())).grid()
    inputs = np.clip(np.rint(rows / scale) + zero_point, 0, 2 * LARGEST + 1) - zero_point
    return inputs.astype(np.float32) @ codes.astype(np.float32) * (scales * np.float32(scale))
