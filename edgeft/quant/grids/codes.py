"""llama.cpp's packed rows taken apart into codes and scales, and other codes put between the same scales.

Every weight is `step * levels[code] - minimum`: one step (and minimum) for a group of 16 or 32 weights, one
level for each code. Bytes and bits are those of `ggml-common.h`, the formulas those of `dequantize_row_*` in
`ggml-quants.c`.

Shapes: n rows, of `cols` weights in `groups` groups; B blocks in a row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import gguf
import numpy as np

from edgeft.quant.ggml import GgmlType

IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""`kvalues_iq4nl` of ggml-common.h."""


@dataclass(frozen=True)
class Codes:
    """A packed matrix taken apart."""

    codes: np.ndarray
    """(n, cols) uint8, indices into `levels`."""
    steps: np.ndarray
    """(n, groups) float32; may be negative or zero."""
    minimums: np.ndarray
    """(n, groups) float32, what is subtracted."""
    levels: np.ndarray
    """(n_codes,) float32, ascending."""

    def values(self) -> np.ndarray:
        """(n, cols) float32; within one unit in the last place of ggml's, which may fuse the two operations."""
        width = self.codes.shape[1] // self.steps.shape[1]
        steps, minimums = (np.repeat(array, width, axis=1) for array in (self.steps, self.minimums))
        return steps * self.levels[self.codes] - minimums


def take_apart(data: np.ndarray, kind: GgmlType, cols: int) -> Codes:
    """The codes and scales of `data` uint8 (n, row_bytes). Raises KeyError for a type without a layout here."""
    layout = LAYOUTS[kind]
    blocks = _blocks(data, kind)
    codes = np.zeros((*blocks.shape[:2], gguf.GGML_QUANT_SIZES[kind][0]), np.uint8)
    shift = 0
    for plane in layout.planes:
        codes |= _read(plane, blocks) << np.uint8(shift)
        shift += plane.bits
    steps, minimums = layout.scales(blocks)
    n = len(data)
    return Codes(
        codes=codes.reshape(n, cols) ^ np.uint8(layout.flip),
        steps=np.ascontiguousarray(steps.reshape(n, -1)),
        minimums=np.ascontiguousarray(np.broadcast_to(minimums, steps.shape).reshape(n, -1)),
        levels=np.asarray(layout.levels, np.float32),
    )


def put_codes(data: np.ndarray, kind: GgmlType, codes: np.ndarray) -> np.ndarray:
    """A copy of `data` uint8 (n, row_bytes) with the same scales and the codes (n, cols) uint8."""
    layout = LAYOUTS[kind]
    data = data.copy()
    blocks = _blocks(data, kind)
    left = (codes ^ np.uint8(layout.flip)).reshape(*blocks.shape[:2], -1)
    for plane in layout.planes:
        _write(plane, blocks, left & np.uint8((1 << plane.bits) - 1))
        left = left >> np.uint8(plane.bits % 8)
    return data


@dataclass(frozen=True)
class _Plane:
    """Some bits of every code. `run` bytes side by side hold the codes 0, 1, … run - 1 in their lowest bits, the
    next `run` codes in the bits above, and so on."""

    start: int
    stop: int
    bits: int
    run: int

    @property
    def shifts(self) -> np.ndarray:
        """(8 / bits, 1)"""
        return np.arange(0, 8, self.bits, dtype=np.uint8)[:, None]


@dataclass(frozen=True)
class _Layout:
    planes: tuple[_Plane, ...]
    """Lowest bits first."""
    levels: tuple[int, ...]
    scales: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    """blocks (n, B, bytes) -> steps (n, B, groups of a block) and minimums, broadcastable to it."""
    flip: int = 0
    """Bits of a stored code that are inverted: turns int8 into an index of ascending levels."""


def _blocks(data: np.ndarray, kind: GgmlType) -> np.ndarray:
    """(n, B, bytes), a view."""
    return data.reshape(len(data), -1, gguf.GGML_QUANT_SIZES[kind][1])


def _read(plane: _Plane, blocks: np.ndarray) -> np.ndarray:
    runs = blocks[..., plane.start : plane.stop].reshape(*blocks.shape[:2], -1, 1, plane.run)
    bits = (runs >> plane.shifts) & np.uint8((1 << plane.bits) - 1)
    return bits.reshape(*blocks.shape[:2], -1)


def _write(plane: _Plane, blocks: np.ndarray, bits: np.ndarray) -> None:
    split = bits.reshape(*blocks.shape[:2], -1, 8 // plane.bits, plane.run)
    packed = np.bitwise_or.reduce(split << plane.shifts, axis=-2)
    blocks[..., plane.start : plane.stop] = packed.reshape(*blocks.shape[:2], -1)


def _f16(blocks: np.ndarray, at: int) -> np.ndarray:
    """The float16 at a byte offset of every block, (n, B, 1) float32."""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16).astype(np.float32)


NOTHING = np.zeros(1, np.float32)


def _scale(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _f16(blocks, 0), NOTHING


def _scale_and_offset(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _f16(blocks, 0), -_f16(blocks, 2)


def _q2_k(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    packed = blocks[..., 0:16]
    return _f16(blocks, 80) * (packed & np.uint8(15)), _f16(blocks, 82) * (packed >> np.uint8(4))


def _q3_k(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low = _read(_Plane(96, 104, 4, 8), blocks)
    high = _read(_Plane(104, 108, 2, 4), blocks)
    return _f16(blocks, 108) * ((low | high << np.uint8(4)).astype(np.float32) - 32), NOTHING


def _k4_scales(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eight 6-bit scales and minimums in 12 bytes (`get_scale_min_k4`), as in Q4_K and Q5_K."""
    first, second, third = (blocks[..., at : at + 4] for at in (4, 8, 12))
    six, four, top = np.uint8(63), np.uint8(15), np.uint8(6)
    scales = np.concatenate([first & six, third & four | first >> top << np.uint8(4)], axis=-1)
    minimums = np.concatenate([second & six, third >> np.uint8(4) | second >> top << np.uint8(4)], axis=-1)
    return _f16(blocks, 0) * scales, _f16(blocks, 2) * minimums


def _q6_k(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _f16(blocks, 208) * np.ascontiguousarray(blocks[..., 192:208]).view(np.int8), NOTHING


def _iq4_xs(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = _read(_Plane(4, 8, 4, 1), blocks), _read(_Plane(2, 4, 2, 1), blocks)
    return _f16(blocks, 0) * ((low | high << np.uint8(4)).astype(np.float32) - 32), NOTHING


LAYOUTS = {
    GgmlType.Q4_0: _Layout((_Plane(2, 18, 4, 16),), tuple(range(-8, 8)), _scale),
    GgmlType.Q4_1: _Layout((_Plane(4, 20, 4, 16),), tuple(range(16)), _scale_and_offset),
    GgmlType.Q5_0: _Layout((_Plane(6, 22, 4, 16), _Plane(2, 6, 1, 1)), tuple(range(-16, 16)), _scale),
    GgmlType.Q5_1: _Layout((_Plane(8, 24, 4, 16), _Plane(4, 8, 1, 1)), tuple(range(32)), _scale_and_offset),
    GgmlType.Q8_0: _Layout((_Plane(2, 34, 8, 32),), tuple(range(-128, 128)), _scale, flip=0x80),
    GgmlType.Q2_K: _Layout((_Plane(16, 80, 2, 32),), tuple(range(4)), _q2_k),
    GgmlType.Q3_K: _Layout((_Plane(32, 96, 2, 32), _Plane(0, 32, 1, 32)), tuple(range(-4, 4)), _q3_k),
    GgmlType.Q4_K: _Layout((_Plane(16, 144, 4, 32),), tuple(range(16)), _k4_scales),
    GgmlType.Q5_K: _Layout((_Plane(48, 176, 4, 32), _Plane(16, 48, 1, 32)), tuple(range(32)), _k4_scales),
    GgmlType.Q6_K: _Layout((_Plane(0, 128, 4, 64), _Plane(128, 192, 2, 32)), tuple(range(-32, 32)), _q6_k),
    GgmlType.IQ4_NL: _Layout((_Plane(2, 18, 4, 16),), IQ4_LEVELS, _scale),
    GgmlType.IQ4_XS: _Layout((_Plane(8, 136, 4, 16),), IQ4_LEVELS, _iq4_xs),
}
