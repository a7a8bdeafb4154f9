"""The streaming pass: rows are read, folded, packed and written a few at a time, so that no whole model is in memory.

The calling thread reads ahead; `n_threads` others fold the adapter in, convert, quantize and write each piece to
its place. A matrix whose rows the architecture rearranges is made whole, in float32, and cut after that. Pieces
are the same whatever the threads, and rows independent: so are the bytes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeft.console import Progress
from edgeft.errors import ModelError
from edgeft.export.adapter import Adapter
from edgeft.export.folder import Checkpoint, StoredTensor
from edgeft.export.gguf.architectures import TensorRule
from edgeft.export.gguf.architectures.base import unchanged
from edgeft.export.gguf.header import Slot
from edgeft.export.writers import Writers
from edgeft.machine.files import write_at
from edgeft.quant import ggml
from edgeft.quant.ggml import GgmlType

PIECE_WEIGHTS = 1 << 18
"""About as many weights are handled at once: 1 MB in float32, a few hundredths of a second in k-quants."""
LARGE_BYTES = 64 << 20
"""A matrix made whole that takes more in float32 waits until the pieces before it are written."""

Rounder = Callable[[str, np.ndarray, GgmlType, np.ndarray | None], np.ndarray]
"""(GGUF tensor name, rows float32 (n, cols), type, importance float32 (cols,) or None) -> uint8 (n, row_bytes).

Called from several threads, with some of the tensor's rows at a time."""


def round_with_ggml(_: str, rows: np.ndarray, kind: GgmlType, importance: np.ndarray | None) -> np.ndarray:
    """The rounder of llama.cpp."""
    return ggml.quantize(rows, kind, importance)


@dataclass(frozen=True)
class Weights:
    """A checkpoint, and what an adapter changes in it."""

    checkpoint: Checkpoint
    adapter: Adapter | None = None

    def stored(self, name: str) -> StoredTensor:
        """Where the tensor lies: in the adapter if it replaces the base's."""
        whole = self.adapter.whole if self.adapter else {}
        return whole.get(name, self.checkpoint.tensors[name])

    def float32(self, name: str, first: int, raw: np.ndarray) -> np.ndarray:
        """The rows from `first` on whose stored bytes are `raw`, with the adapter folded in: float32 (n, cols)."""
        rows = _float32(raw, self.stored(name).dtype)
        if self.adapter and name in self.adapter.low_rank:
            rows = rows + self.adapter.low_rank[name].rows(first, first + len(rows))
        return rows

    def is_folded(self, name: str) -> bool:
        """Whether the adapter adds to the tensor."""
        return self.adapter is not None and name in self.adapter.low_rank

    def whole(self, name: str) -> np.ndarray:
        """The tensor in float32."""
        stored = self.stored(name)
        tensor = np.empty((stored.n_rows, math.prod(stored.shape[-1:])), np.float32)
        for first, last in _row_ranges(*tensor.shape):
            tensor[first:last] = self.float32(name, first, stored.raw_rows(first, last))
        return tensor.reshape(stored.shape)


@dataclass(frozen=True)
class Target:
    """One tensor of the file: how it is made, where it goes, and how much its columns count.

    `importance` is float32 (E, cols) for a stack of E matrices (E = 1 for one), or None.
    """

    rule: TensorRule
    slot: Slot
    importance: np.ndarray | None = None

    @property
    def row_bytes(self) -> int:
        """Packed bytes of a row."""
        return ggml.row_bytes(self.slot.kind, self.n_cols)

    @property
    def n_cols(self) -> int:
        """Weights of a row."""
        return math.prod(self.rule.shape[-1:])


@dataclass(frozen=True)
class _Piece:
    """Rows from `first` on: as the source has them stored, or (`source` None) as float32 ready to be packed."""

    target: Target
    first: int
    rows: np.ndarray
    source: str | None

    @property
    def n_weights(self) -> int:
        return len(self.rows) * self.target.n_cols


def stream(
    file: int,
    start: int,
    targets: Sequence[Target],
    weights: Weights,
    *,
    rounder: Rounder,
    n_threads: int,
    done: Progress,
    check: Future[Any],
) -> None:
    """Write the tensors into the open `file` (a descriptor), whose first tensor begins at byte `start`.

    `done` is told the millions of weights written. `check` runs beside; when it fails, so does the pass, at once
    with what it raised. Raises ModelError for weights that are not finite or too
    large for their type; OSError when the disk refuses.
    """
    with Writers(n_threads, done, check) as writers:
        for target in targets:
            if target.rule.change is not unchanged and 4 * math.prod(target.rule.shape) > LARGE_BYTES:
                writers.finish()
            for piece in _pieces(target, weights):
                writers.submit(_write, file, start, piece, weights, rounder)
        writers.finish()


def _pieces(target: Target, weights: Weights) -> Iterator[_Piece]:
    """The rows of a tensor; no piece holds rows of two experts, whose importance differs."""
    rule = target.rule
    n_rows = math.prod(rule.shape[:-1])
    rows_of_one = rule.shape[-2] if len(rule.shape) > 1 else 1
    ranges = (
        (matrix + first, matrix + last)
        for matrix in range(0, n_rows, rows_of_one)
        for first, last in _row_ranges(rows_of_one, target.n_cols)
    )
    if rule.change is unchanged:
        stored = weights.stored(rule.sources[0])
        for first, last in ranges:
            yield _Piece(target, first, stored.raw_rows(first, last), rule.sources[0])
    else:
        tensor = rule.change(*map(weights.whole, rule.sources))
        tensor = np.ascontiguousarray(tensor, np.float32).reshape(n_rows, target.n_cols)
        for first, last in ranges:
            yield _Piece(target, first, tensor[first:last], None)


def _row_ranges(n_rows: int, n_cols: int) -> Iterator[tuple[int, int]]:
    step = max(1, PIECE_WEIGHTS // max(1, n_cols))
    for first in range(0, n_rows, step):
        yield first, min(first + step, n_rows)


def _write(file: int, start: int, piece: _Piece, weights: Weights, rounder: Rounder) -> int:
    """Pack a piece and write it to its place; returns the number of its weights."""
    packed = _pack(piece, weights, rounder)
    at = start + piece.target.slot.start + piece.first * piece.target.row_bytes
    view = packed.data.cast("B")
    write_at(file, view, at)
    return piece.n_weights


def _pack(piece: _Piece, weights: Weights, rounder: Rounder) -> np.ndarray:
    slot, source = piece.target.slot, piece.source
    if source is not None and not weights.is_folded(source) and weights.stored(source).dtype == slot.kind.name:
        packed = piece.rows  # nothing to convert
        if not ggml.is_finite(packed, slot.kind):
            raise _not_finite(piece)
        return packed
    rows = piece.rows if source is None else weights.float32(source, piece.first, piece.rows)
    if not ggml.is_finite(rows, GgmlType.F32):
        raise _not_finite(piece)
    if ggml.block_size(slot.kind) == 1:
        packed = ggml.quantize(rows, slot.kind)
    else:
        packed = rounder(slot.name, rows, slot.kind, _importance(piece))
    if not ggml.is_finite(packed, slot.kind):
        raise ModelError(
            f"{' + '.join(piece.target.rule.sources)} holds {np.abs(rows).max():g}, too large for "
            f"{slot.kind.name}; export BF16 instead"
        )
    return packed


def _importance(piece: _Piece) -> np.ndarray | None:
    importance = piece.target.importance
    return None if importance is None else importance[piece.first // piece.target.rule.shape[-2]]


def _not_finite(piece: _Piece) -> ModelError:
    sources = " + ".join(piece.target.rule.sources) or piece.target.slot.name
    return ModelError(f"{sources} holds values that are not finite; the weights are damaged, train or copy them again")


def _float32(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Stored rows uint8 (n, row_bytes) as float32 (n, cols)."""
    if dtype == "F64":
        return raw.view(np.float64).astype(np.float32)
    if dtype == "F32":
        return raw.view(np.float32)
    kind = GgmlType[dtype]
    return ggml.dequantize(raw, kind, raw.shape[1] // ggml.row_bytes(kind, 1))
