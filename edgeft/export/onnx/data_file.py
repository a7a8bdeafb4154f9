"""Filling the file with a graph's weights in one pass over the checkpoint, a few rows at a time.

The calling thread reads ahead; `n_threads` others fold the adapter in, round and write each piece to its place. A
tensor that the checkpoint keeps the other way round is made whole, in float32, and cut after that. Pieces are the
same whatever the threads, and rows independent: so are the bytes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgeft.console import Progress
from edgeft.errors import ModelError
from edgeft.export.gguf.architectures import TensorRule
from edgeft.export.gguf.architectures.base import unchanged
from edgeft.export.gguf.stream import Weights
from edgeft.export.onnx.graph import FLOATS, Slot
from edgeft.export.onnx.settings import Rounder
from edgeft.export.writers import Writers
from edgeft.machine.files import write_at
from edgeft.quant.grids.onnx import MatMulNBits

PIECE_WEIGHTS = 1 << 18
"""About as many weights are handled at once: 1 MB in float32."""


@dataclass(frozen=True)
class Target:
    """A matrix or vector of the file, and the tensors whose rows, one tensor after another, it holds.

    Of a packed one `values` are the codes. Without `rules` every byte is `fill`.
    """

    rules: tuple[TensorRule, ...]
    values: Slot
    scales: Slot | None = None
    zero_points: Slot | None = None
    grid: MatMulNBits | None = None
    fill: int = 0

    @property
    def n_rows(self) -> int:
        """Of all tensors together; a vector has one for each of its values."""
        return sum(rule.shape[0] for rule in self.rules)


@dataclass(frozen=True)
class _Piece:
    """Rows of `rule` from `first` on: as the source has them stored, or (`source` None) as float32.

    `at` counts in the target's first axis what lies before them.
    """

    target: Target
    rule: TensorRule
    at: int
    first: int
    rows: np.ndarray
    source: str | None


def fill(
    file: int, targets: Sequence[Target], weights: Weights, *, rounder: Rounder, n_threads: int, done: Progress
) -> None:
    """Write the tensors into the open `file` (a descriptor). `done` is told the millions of weights written.

    Raises ModelError for weights that are not finite or too large for float16; OSError when the disk refuses.
    """
    with Writers(n_threads, done) as writers:
        for target in targets:
            if not target.rules:
                _put(file, target.values.start, np.full(target.values.n_bytes, target.fill, np.uint8))
            for piece in _pieces(target, weights):
                writers.submit(_write, file, piece, weights, rounder)
        writers.finish()


def _pieces(target: Target, weights: Weights) -> Iterator[_Piece]:
    at = 0
    for rule in target.rules:
        n_rows, n_cols = _matrix(rule.shape)
        step = max(1, PIECE_WEIGHTS // n_cols)
        whole = None if rule.change is unchanged else rule.change(*map(weights.whole, rule.sources))
        for first in range(0, n_rows, step):
            last = min(first + step, n_rows)
            if whole is None:
                rows = weights.stored(rule.sources[0]).raw_rows(first, last)
                yield _Piece(target, rule, at + first, first, rows, rule.sources[0])
            else:
                rows = np.ascontiguousarray(whole.reshape(n_rows, n_cols)[first:last], np.float32)
                yield _Piece(target, rule, at + first, first, rows, None)
        at += rule.shape[0]


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a matrix; a vector is a row."""
    return math.prod(shape[:-1]), shape[-1]


def _write(file: int, piece: _Piece, weights: Weights, rounder: Rounder) -> int:
    """Pack a piece and write its parts to their places; returns the number of its weights."""
    rows = piece.rows if piece.source is None else weights.float32(piece.source, piece.first, piece.rows)
    sources = " + ".join(piece.rule.sources)
    if not np.isfinite(rows).all():
        raise ModelError(f"{sources} holds values that are not finite; the weights are damaged, copy them again")
    target = piece.target
    if target.grid is None:
        parts = [(target.values, _floats(rows, target.values, sources))]
    else:
        packed = rounder(piece.rule.name, rows, target.grid)
        parts = [(target.values, packed.codes)]
        if target.scales is not None:
            parts.append((target.scales, _floats(packed.scales, target.scales, sources)))
        if target.zero_points is not None and packed.zero_points is not None:
            parts.append((target.zero_points, packed.zero_points))
    for slot, values in parts:
        _put(file, slot.start + piece.at * (slot.n_bytes // target.n_rows), values)
    return rows.size


def _floats(values: np.ndarray, slot: Slot, sources: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        converted = values.astype(FLOATS[slot.elem_type])
    if not np.isfinite(converted).all():
        raise ModelError(f"{sources} holds {np.abs(values).max():g}, too large for float16; export fp32 instead")
    return converted


def _put(file: int, at: int, values: np.ndarray) -> None:
    view = np.ascontiguousarray(values).data.cast("B")
    write_at(file, view, at)
