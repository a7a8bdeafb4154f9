"""Float matrices as int8 codes with a scale for every column.

`quantize_columns` uses all codes -127 … 127. `quantize_pairs` leaves out what 16 bits cannot hold: on x86 processors
without VNNI onnxruntime multiplies uint8 inputs by int8 weights with `vpmaddubsw`, which adds the products of rows 2i
and 2i + 1 and cuts the sum to -32768 … 32767
(https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/core/mlas/lib/amd64/QgemmU8S8KernelAvx2.asm). An input
is at most 255, so the sum fits whatever the inputs where the codes of a pair that have the same sign add up to at
most `PAIR_LIMIT`: 255 * 128 = 32640. onnxruntime's own way out, `reduce_range`, holds every code to 64 for it, which
doubles every rounding error; here only the few pairs that are too large give way.

Shapes: K inputs (rows), N outputs (columns).
"""

from collections.abc import Callable

import numpy as np

from edgeft.runtime.int8_pairs import PAIR_LIMIT

LARGEST = 127
"""Codes are -127 … 127: -128 has no counterpart."""
REACHES = (127, 116, 106, 96, 87, 79, 71, 64)
"""What a column's largest value may become; with the last no pair is too large, as with `reduce_range`."""

Quantizer = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Weights float32 (K, N) -> codes int8 (K, N) and scales float32 (N,): value = code * scale."""


def quantize_columns(weight: np.ndarray, reach: int = LARGEST) -> tuple[np.ndarray, np.ndarray]:
    """Each value to the nearest code of its column, the largest to `reach`. See `Quantizer`."""
    scales = _scales(weight, reach)
    return np.clip(np.rint(weight / scales), -reach, reach).astype(np.int8), scales


def quantize_pairs(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same within `PAIR_LIMIT`; each column has the scale, of `REACHES`, that loses least. See `Quantizer`."""
    best = np.full(weight.shape[1], np.inf, np.float32)
    codes, scales = np.zeros(weight.shape, np.int8), np.ones(weight.shape[1], np.float32)
    for reach in REACHES:
        tried = _scales(weight, reach)
        values = weight / tried
        rounded = _held(values)
        errors = np.square(rounded - values).sum(axis=0) * np.square(tried)
        better = errors < best
        best[better], scales[better], codes[:, better] = errors[better], tried[better], rounded[:, better]
    return codes, scales


def _scales(weight: np.ndarray, reach: int) -> np.ndarray:
    largest = np.abs(weight).max(axis=0)
    return np.where(largest > 0, largest / np.float32(reach), np.float32(1)).astype(np.float32)


def _held(values: np.ndarray) -> np.ndarray:
    """`values` (K, N), in steps, as codes (float32) whose pairs are within the limit, nearest to them."""
    codes = np.clip(np.rint(values), -LARGEST, LARGEST)
    end = len(codes) // 2 * 2
    upper, lower = codes[0:end:2], codes[1:end:2]
    rows, columns = np.nonzero((upper * lower > 0) & (np.abs(upper) + np.abs(lower) > PAIR_LIMIT))
    a, b = np.abs(values[2 * rows, columns]), np.abs(values[2 * rows + 1, columns])
    # The nearest point with a sum of PAIR_LIMIT: both give way by half of what is too much.
    first = np.clip(np.rint((a - b + PAIR_LIMIT) / 2), 1, LARGEST)
    upper[rows, columns] = np.copysign(first, values[2 * rows, columns])
    lower[rows, columns] = np.copysign(PAIR_LIMIT - first, values[2 * rows + 1, columns])
    return codes
