"""Better rounding on the grids of onnxruntime's MatMulNBits, for the same bytes and the same kernels.

Zero points stay whole numbers: a float one, as onnxruntime's own HQQ writes it, sends the operator down a path
twenty times as slow. Shapes: R rows, C columns, B blocks in a row, W weights in a block.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Literal

import numpy as np

from edgeft.quant.grids.onnx import MatMulNBits, Packed, blocks_of, nearest, pack, quantize, scales_of
from edgeft.quant.rounding import feedback_of

Method = Literal["rtn", "k_quant", "hqq", "gptq", "feedback"]
Rounder = Callable[[str, np.ndarray, MatMulNBits], Packed]

SHRINKING = np.arange(22, 36, dtype=np.float32) / np.float32(34)
"""Shares of the widest scale that are tried, 1 among them."""
BLOCKS_AT_ONCE = 4096
"""Enough to make a call worth its cost, and few enough for the processor's cache."""
TINY = np.finfo(np.float32).tiny
"""Smaller scales have no inverse; their blocks keep the codes of zero."""
HQQ_NORM, HQQ_BETA, HQQ_GROWTH, HQQ_STEPS = 0.7, 10.0, 1.01, 20
"""Settings of HQQ's own code (Badri and Shaji 2023): p of the norm, beta and its growth a step, steps."""


def round_to_nearest(_: str, rows: np.ndarray, grid: MatMulNBits) -> Packed:
    """As onnxruntime's quantizer rounds by default."""
    return quantize(rows, grid)


def round_by_search(_: str, rows: np.ndarray, grid: MatMulNBits) -> Packed:
    """The scale, and zero point, of least error in each block, as llama.cpp's k-quants search and onnxruntime's
    `k_quant` does: a weight x counts sqrt(mean x²) + |x|."""
    blocks = blocks_of(rows, grid.block_size)
    weights = np.sqrt(np.square(blocks).mean(axis=-1, keepdims=True)) + np.abs(blocks)
    scales, zero_points = search(blocks, weights, grid)
    return pack(nearest(blocks, scales, zero_points, grid), scales, zero_points, grid)


def round_half_quadratic(_: str, rows: np.ndarray, grid: MatMulNBits) -> Packed:
    """HQQ: the error in the norm p = 0.7, which forgives outliers, by turns of shrinking it and fitting the rest.

    Each step fits the zero point, rounded, and the scale; of all steps the best by that norm is kept.
    """
    blocks = blocks_of(rows, grid.block_size)
    scales, zero_points = scales_of(blocks, grid)
    best, kept_scales, kept_points = np.full(scales.shape, np.inf, np.float32), scales, zero_points
    beta = HQQ_BETA
    for _step in range(HQQ_STEPS):
        moved = nearest(blocks, scales, zero_points, grid).astype(np.float32) - zero_points[..., None]
        error = blocks - moved * scales[..., None]
        total = (np.abs(error) ** HQQ_NORM).sum(axis=-1)
        better = total < best
        best = np.where(better, total, best)
        kept_scales, kept_points = np.where(better, scales, kept_scales), np.where(better, zero_points, kept_points)
        rest = blocks - _shrunk(error, beta)
        beta *= HQQ_GROWTH
        if not grid.symmetric:
            inverse = np.divide(1, scales, out=np.zeros_like(scales), where=np.abs(scales) > TINY)
            points = (moved + zero_points[..., None] - rest * inverse[..., None]).mean(axis=-1)
            zero_points = np.clip(np.rint(points), 0, grid.highest).astype(np.uint8)
        scales = _fitted(rest, moved, scales)
    return pack(nearest(blocks, kept_scales, kept_points, grid), kept_scales, kept_points, grid)


class FeedbackRounder:
    """Takes the error made in one column back in those behind it (GPTQ, Frantar et al. 2023), where it has a Hessian.

    With the Hessian of the inputs alone that is GPTQ; with that of `edgeft.quant.moments`, where a token counts as
    much as it matters, it is closer to the output. Other matrices are rounded by search.
    """

    def __init__(self, hessians: Mapping[str, np.ndarray]) -> None:
        """`hessians` (C, C) by GGUF name."""
        self._hessians = hessians
        self._feedback = lru_cache(maxsize=8)(lambda name: feedback_of(hessians[name]))

    def __call__(self, name: str, rows: np.ndarray, grid: MatMulNBits) -> Packed:
        """See `edgeft.export.onnx.settings.Rounder`."""
        if name not in self._hessians:
            return round_by_search(name, rows, grid)
        return round_with_feedback(rows, grid, np.diag(self._hessians[name]), self._feedback(name))


def round_with_feedback(rows: np.ndarray, grid: MatMulNBits, importance: np.ndarray, feedback: np.ndarray) -> Packed:
    """`rows` float32 (R, C) on the grid. `importance` (C,) weighs the search for the scales of a block, which sees
    its weights as the columns before have left them; `feedback` (C, C) is `edgeft.quant.rounding.feedback_of`."""
    left = rows.astype(np.float32)
    codes, scales, zero_points = [], [], []
    for start in range(0, rows.shape[1], grid.block_size):
        columns = slice(start, min(start + grid.block_size, rows.shape[1]))
        block = blocks_of(left[:, columns], grid.block_size)
        weights = np.zeros(grid.block_size, np.float32)
        weights[: columns.stop - start] = importance[columns]
        scale, zero_point = search(block, np.broadcast_to(weights, block.shape), grid)
        made, errors = _round_block(left[:, columns], scale, zero_point, feedback[columns, columns], grid)
        left[:, columns.stop :] -= errors @ feedback[columns, columns.stop :]
        padded = np.repeat(zero_point[..., None], grid.block_size, axis=-1)
        padded[:, 0, : made.shape[1]] = made
        codes.append(padded)
        scales.append(scale)
        zero_points.append(zero_point)
    all_codes, all_scales, all_points = (np.concatenate(parts, axis=1) for parts in (codes, scales, zero_points))
    return pack(all_codes, all_scales, all_points, grid)


def search(blocks: np.ndarray, weights: np.ndarray, grid: MatMulNBits) -> tuple[np.ndarray, np.ndarray]:
    """Scales float32 and zero points uint8 (R, B) of about the least squared error weighted by `weights` (R, B, W).

    From the widest scale down each is tried, of a symmetric grid in both signs and of another with the zero points
    that keep the lowest weight, the highest and the middle of both; the best scale for the codes it gives is taken.
    """
    widest, points = scales_of(blocks, grid)
    scales, zero_points = np.empty_like(widest), np.empty_like(points)
    width = blocks.shape[-1]
    flat, flat_weights = blocks.reshape(-1, width), np.broadcast_to(weights, blocks.shape).reshape(-1, width)
    for start in range(0, len(flat), BLOCKS_AT_ONCE):
        part = slice(start, start + BLOCKS_AT_ONCE)
        columns, column_weights = (np.ascontiguousarray(each[part].T) for each in (flat, flat_weights))
        found = _search_columns(columns, column_weights, widest.reshape(-1)[part], points.reshape(-1)[part], grid)
        scales.reshape(-1)[part], zero_points.reshape(-1)[part] = found
    return scales, zero_points


def _search_columns(
    columns: np.ndarray, weights: np.ndarray, widest: np.ndarray, points: np.ndarray, grid: MatMulNBits
) -> tuple[np.ndarray, np.ndarray]:
    """`search` for blocks that stand as columns (W, n), where a step of all of them is one vector operation."""
    best = np.zeros_like(widest)
    kept_scales, kept_points = widest, points
    low, high = columns.min(axis=0), columns.max(axis=0)
    weighted, moved, products = weights * columns, np.empty_like(columns), np.empty_like(columns)
    for share in SHRINKING:
        for scales, zero_points in _candidates(low, high, widest * share, points, grid):
            inverse = np.divide(1, scales, out=np.zeros_like(scales), where=np.abs(scales) > TINY)
            below = -zero_points.astype(np.float32)
            np.rint(np.multiply(columns, inverse, out=moved), out=moved)
            np.minimum(np.maximum(moved, below, out=moved), below + np.float32(grid.highest), out=moved)
            product = np.multiply(weighted, moved, out=products).sum(axis=0)
            square = np.multiply(weights, np.multiply(moved, moved, out=moved), out=moved).sum(axis=0)
            fitted = np.divide(product, square, out=np.zeros_like(best), where=square > 0)
            gain = product * fitted  # by so much the error is less than that of all zeros
            better = gain > best
            best = np.where(better, gain, best)
            kept_scales = np.where(better, fitted, kept_scales)
            kept_points = np.where(better, zero_points, kept_points)
    return kept_scales, kept_points


def _candidates(
    low: np.ndarray, high: np.ndarray, scales: np.ndarray, points: np.ndarray, grid: MatMulNBits
) -> list[tuple[np.ndarray, np.ndarray]]:
    if grid.symmetric:
        return [(scales, points), (-scales, points)]
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=np.abs(scales) > TINY)
    lowest, highest = -low * inverse, grid.highest - high * inverse
    wanted = (lowest, highest, (lowest + highest) / 2)
    return [(scales, np.clip(np.rint(point), 0, grid.highest).astype(np.uint8)) for point in wanted]


def _fitted(blocks: np.ndarray, moved: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """The scales (R, B) of least squared error for codes less zero points `moved`."""
    products, squares = np.einsum("rbw,rbw->rb", blocks, moved), np.einsum("rbw,rbw->rb", moved, moved)
    return np.divide(products, squares, out=otherwise.astype(np.float32), where=squares > 0)


def _shrunk(error: np.ndarray, beta: float) -> np.ndarray:
    """The proximal operator of |x|^p: small errors become none, large ones stay."""
    size = np.abs(error)
    power = np.power(size, HQQ_NORM - 1, out=np.zeros_like(size), where=size > 0)
    return np.sign(error) * np.maximum(size - power / beta, 0)


def _round_block(
    rows: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, feedback: np.ndarray, grid: MatMulNBits
) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint8 (R, W) of one block of columns, and the errors float32 (R, W) to feed back."""
    left = rows.copy()
    codes, errors = np.empty(left.shape, np.uint8), np.empty_like(left)
    moved = zero_point[:, 0].astype(np.float32)
    for column in range(left.shape[1]):
        codes[:, column] = nearest(left[:, column, None, None], scale, zero_point, grid)[:, 0, 0]
        errors[:, column] = left[:, column] - (codes[:, column] - moved) * scale[:, 0]
        left[:, column + 1 :] -= errors[:, column, None] * feedback[column, column + 1 :]
    return codes, errors


UNCALIBRATED: dict[str, Rounder] = {
    "rtn": round_to_nearest,
    "k_quant": round_by_search,
    "hqq": round_half_quadratic,
}
"""Methods that need nothing but the weights."""
