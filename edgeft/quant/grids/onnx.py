"""The int4 and int8 grids of onnxruntime's MatMulNBits.

Blocks of `block_size` weights along a row (an output) share a scale, and an asymmetric grid a zero point:
value = (code - zero point) * scale, with 2^(bits - 1) for the zero point of a symmetric grid. The operator's
layout is its documentation's (onnxruntime `docs/ContribOperators.md`, MatMulNBits); scales and rounding are those
of onnxruntime's own quantizer (`MlasQuantizeBlockwise`, `core/mlas/lib/q4_dq.cpp`), whose bytes these are.

Shapes: N outputs (rows), K inputs (cols), B = ceil(K / block_size) blocks in a row.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

SCALE_BYTES = 4
"""A float32."""


@dataclass(frozen=True)
class MatMulNBits:
    """One grid. `bits` is 4 or 8, `block_size` a power of two from 16 on."""

    bits: int = 4
    block_size: int = 32
    symmetric: bool = True

    def __post_init__(self) -> None:
        if self.bits not in (4, 8) or self.block_size < 16 or self.block_size & (self.block_size - 1):
            raise ValueError(f"MatMulNBits has no {self.bits} bits in blocks of {self.block_size}")

    @property
    def name(self) -> str:
        """As in a table: `int4/32 symmetric`."""
        return f"int{self.bits}/{self.block_size} {'symmetric' if self.symmetric else 'asymmetric'}"

    @property
    def middle(self) -> int:
        """The zero point of a symmetric grid."""
        return 1 << (self.bits - 1)

    @property
    def highest(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1


@dataclass(frozen=True)
class Packed:
    """The operator's inputs B, scales and zero_points."""

    codes: np.ndarray
    """uint8 (N, B, block_size * bits / 8); of two 4-bit codes in a byte the first is the low one."""
    scales: np.ndarray
    """float32 (N, B)."""
    zero_points: np.ndarray | None
    """uint8 (N, ceil(B * bits / 8)), packed as the codes; None for a symmetric grid."""


@dataclass(frozen=True)
class Group:
    """Matrices that one node multiplies by, and so share a grid."""

    tensors: Mapping[str, tuple[int, int]]
    """(N, K) by name."""
    candidates: tuple[MatMulNBits, ...]


def matrix_bytes(shape: tuple[int, int], grid: MatMulNBits) -> int:
    """Of codes, scales and zero points of a matrix (N, K)."""
    n_blocks = -(-shape[1] // grid.block_size)
    points = 0 if grid.symmetric else -(-n_blocks * grid.bits // 8)
    return shape[0] * (n_blocks * (grid.block_size * grid.bits // 8 + SCALE_BYTES) + points)


def quantize(rows: np.ndarray, grid: MatMulNBits) -> Packed:
    """`rows` float32 (N, K) rounded to `grid`. Raises ValueError for weights that are not finite."""
    if not np.isfinite(rows).all():
        raise ValueError("weights are not finite")
    blocks = blocks_of(rows, grid.block_size)
    scales, zero_points = scales_of(blocks, grid)
    return pack(nearest(blocks, scales, zero_points, grid), scales, zero_points, grid)


def nearest(blocks: np.ndarray, scales: np.ndarray, zero_points: np.ndarray, grid: MatMulNBits) -> np.ndarray:
    """The nearest codes uint8 (N, B, block_size) of `blocks`, with scales (N, B) and zero points (N, B)."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # a denormal scale has an infinite inverse
        inverse = np.where(scales != 0, np.float32(1) / scales, np.float32(0))
        moved = np.nan_to_num(blocks * inverse[..., None] + zero_points[..., None].astype(np.float32), nan=0.0)
    return _rounded(moved, grid.highest)


def pack(codes: np.ndarray, scales: np.ndarray, zero_points: np.ndarray, grid: MatMulNBits) -> Packed:
    """The operator's inputs of codes uint8 (N, B, block_size), scales float32 (N, B) and zero points uint8 (N, B)."""
    return Packed(_pack(codes, grid), scales, None if grid.symmetric else _pack(zero_points, grid))


def dequantize(packed: Packed, grid: MatMulNBits, cols: int) -> np.ndarray:
    """The values (N, K) float32 of the operator's inputs."""
    codes = _unpack(packed.codes, grid.bits).astype(np.int32)
    if packed.zero_points is None:
        zero_points = np.full(packed.scales.shape, grid.middle, np.int32)
    else:
        zero_points = _unpack(packed.zero_points, grid.bits)[:, : packed.scales.shape[1]].astype(np.int32)
    values = (codes - zero_points[..., None]).astype(np.float32) * packed.scales[..., None]
    return np.ascontiguousarray(values.reshape(len(values), -1)[:, :cols])


def blocks_of(rows: np.ndarray, block_size: int) -> np.ndarray:
    """(N, B, block_size) float32; the last block is filled with zeros."""
    n, cols = rows.shape
    n_blocks = -(-cols // block_size)
    padded = np.zeros((n, n_blocks * block_size), np.float32)
    padded[:, :cols] = rows
    return padded.reshape(n, n_blocks, block_size)


def scales_of(blocks: np.ndarray, grid: MatMulNBits) -> tuple[np.ndarray, np.ndarray]:
    """Scales float32 (N, B) and zero points uint8 (N, B).

    Symmetric: the value of largest magnitude becomes code 0. Asymmetric: the range, widened to hold zero.
    """
    low, high = blocks.min(axis=-1), blocks.max(axis=-1)
    if grid.symmetric:
        largest = np.where(np.abs(high) > np.abs(low), high, low)
        return -largest / np.float32(grid.middle), np.full(low.shape, grid.middle, np.uint8)
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scales = (high - low) / np.float32(grid.highest)
    with np.errstate(divide="ignore", invalid="ignore"):
        zero_points = np.where(scales != 0, -low / scales, np.float32(0))
    return scales, _rounded(zero_points, grid.highest)


def _rounded(values: np.ndarray, highest: int) -> np.ndarray:
    """The nearest code uint8, a half upwards; exact where floor(x + 0.5) is not, just under a half."""
    values = np.clip(values, 0, highest)
    whole = np.floor(values)
    return (whole + (values - whole >= 0.5)).astype(np.uint8)


def _pack(codes: np.ndarray, grid: MatMulNBits) -> np.ndarray:
    """Codes uint8 in the last axis, two to a byte when they have 4 bits; an odd one is paired with the middle."""
    if grid.bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.full((*codes.shape[:-1], 1), grid.middle, np.uint8)], axis=-1)
    return codes[..., 0::2] | codes[..., 1::2] << np.uint8(4)


def _unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return packed
    codes = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1)
    return codes.reshape(*packed.shape[:-1], -1)
