"""Running tokens through a decoder graph behind those already run, one sequence at a time.

Graphs whose GroupQueryAttention nodes write keys and values in place run with everything bound once (SharedDecoder);
any other graph with past_key_values gets back what it gave (GrowingDecoder).

Shapes: T tokens of a call, P tokens before it, N positions the context holds, V entries of the vocabulary.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime

from edgeft.errors import ModelError
from edgeft.runtime.onnx_cache import NUMPY_TYPES, PAST, CacheEntry, GrowingCache, SharedCache, cache_entries
from edgeft.runtime.onnx_file import OnnxFile
from edgeft.runtime.onnx_session import DEVICES, run_fault

IDS, MASK, POSITIONS, KEEP, LOGITS = "input_ids", "attention_mask", "position_ids", "num_logits_to_keep", "logits"
IN_PLACE = {"GroupQueryAttention"}
"""Operators (onnxruntime, docs/ContribOperators.md) that take one buffer as past and present."""


class Decoder(Protocol):
    """A graph with the keys and values of one sequence."""

    n_vocab: int
    all_rows: bool
    """Whether a call can give the logits of all its tokens, not only of the last."""
    lean: bool
    """Whether a call computes no more logits than are asked for."""

    def run(self, ids: Sequence[int], n_past: int, n_last: int) -> np.ndarray:
        """Run `ids` behind `n_past` tokens; logits (n_last, V) float32 of the last of them, good until the next call.

        `n_past` 0 begins a sequence. Raises RuntimeFault when onnxruntime fails.
        """
        ...

    def save(self, n_past: int) -> list[np.ndarray]:
        """The keys and values of the first `n_past` tokens."""
        ...

    def restore(self, held: Sequence[np.ndarray]) -> None:
        """Put back what `save` gave."""
        ...


def open_decoder(session: Any, checked: OnnxFile, sizes: Mapping[str, int], n_ctx: int) -> Decoder:
    """The decoder for this graph; `sizes` as of `cache_entries`.

    Raises ModelError for inputs that are not known or for missing ones.
    """
    try:
        entries = cache_entries(session, sizes)
        _check_inputs(session)
    except ModelError as error:
        raise ModelError(f"{checked.path}: {error}") from None
    in_place = all(checked.consumers(each.past) and checked.consumers(each.past) <= IN_PLACE for each in entries)
    kind = SharedDecoder if in_place else GrowingDecoder
    return kind(session, checked.path, entries, n_ctx)


def _check_inputs(session: Any) -> None:
    names = {put.name: put.type for put in session.get_inputs() if not put.name.startswith(PAST)}
    if unknown := names.keys() - {IDS, MASK, POSITIONS, KEEP}:
        raise ModelError(f"the graph wants inputs that are not known here: {', '.join(sorted(unknown))}")
    if wrong := [name for name, kind in names.items() if kind != "tensor(int64)"]:
        raise ModelError(f"the graph's {wrong[0]} is {names[wrong[0]]}, not int64")
    output = next((each for each in session.get_outputs() if each.name == LOGITS), None)
    if IDS not in names or output is None or output.type not in NUMPY_TYPES or len(output.shape) != 3:
        raise ModelError(f"the graph does not turn {IDS} into {LOGITS} of shape (batch, tokens, vocabulary)")


class _Graph:
    """What both kinds of decoders share: the arrays behind the inputs, and what the graph can give."""

    def __init__(self, session: Any, path: Path, entries: Sequence[CacheEntry], n_ctx: int) -> None:
        self.session, self.path = session, path
        self.device = DEVICES.get(session.get_providers()[0], "cpu")
        self.inputs = {put.name for put in session.get_inputs()}
        logits = next(each for each in session.get_outputs() if each.name == LOGITS)
        self.kind = NUMPY_TYPES[logits.type]
        self.lean = KEEP in self.inputs or logits.shape[1] == 1
        self.all_rows = logits.shape[1] != 1
        self.ids = np.zeros((1, n_ctx), np.int64)
        self.positions = np.arange(n_ctx, dtype=np.int64)[None]
        self.mask = np.ones((1, n_ctx), np.int64)
        self.keep = np.zeros((), np.int64)
        self.n_vocab = logits.shape[2] if isinstance(logits.shape[2], int) else 0

    def rows(self, logits: np.ndarray, n_last: int) -> np.ndarray:
        """(n_last, V) float32 of the output (1, tokens, V)."""
        wanted = logits[0, logits.shape[1] - n_last :]
        return wanted if wanted.dtype == np.float32 else wanted.astype(np.float32)


class SharedDecoder(_Graph):
    """See `Decoder`. For a token only two shapes are bound anew; nothing is allocated or copied."""

    def __init__(self, session: Any, path: Path, entries: Sequence[CacheEntry], n_ctx: int) -> None:
        super().__init__(session, path, entries, n_ctx)
        self.cache = SharedCache(entries, n_ctx, self.device)
        self.binding = session.io_binding()
        self.cache.bind(self.binding)
        if KEEP in self.inputs:
            self._bind(KEEP, self.keep, 0, ())
        self.one = np.zeros((1, 1, self.n_vocab), self.kind)
        self.length = 0
        self.save, self.restore = self.cache.save, self.cache.restore

    def run(self, ids: Sequence[int], n_past: int, n_last: int) -> np.ndarray:
        """See `Decoder`."""
        n = len(ids)
        self.ids[0, :n] = ids
        if n != self.length:
            self._bind(IDS, self.ids, 0, (1, n))
            self._bind_logits(n)
        if POSITIONS in self.inputs:
            self._bind(POSITIONS, self.positions, n_past, (1, n))
        if MASK in self.inputs:
            self._bind(MASK, self.mask, 0, (1, n_past + n))
        self.keep[...] = max(1, n_last)
        try:
            self.session.run_with_iobinding(self.binding)
        except Exception as error:
            raise run_fault(self.path, error) from None
        if n == 1:
            return self.rows(self.one, n_last)
        self.length = 0  # the output's shape depends on this call
        return self.rows(self._made_logits(), n_last)

    def _bind(self, name: str, array: np.ndarray, start: int, shape: tuple[int, ...]) -> None:
        address = array.ctypes.data + start * array.itemsize
        self.binding.bind_input(name, "cpu", 0, array.dtype.type, shape, address)

    def _bind_logits(self, n: int) -> None:
        self.length = n
        if n == 1 and self.n_vocab:
            shape, address = self.one.shape, self.one.ctypes.data
            self.binding.bind_output(LOGITS, "cpu", 0, self.kind, shape, address)
        else:
            self.binding.bind_output(LOGITS, "cpu")

    def _made_logits(self) -> np.ndarray:
        logits: np.ndarray = self.binding.get_outputs()[len(self.cache.entries)].numpy()
        return logits


class GrowingDecoder(_Graph):
    """See `Decoder`. The graph makes longer keys and values each time; they are handed on as they are."""

    def __init__(self, session: Any, path: Path, entries: Sequence[CacheEntry], n_ctx: int) -> None:
        super().__init__(session, path, entries, n_ctx)
        self.cache = GrowingCache(entries, self.device)
        self.wanted = [LOGITS, *self.cache.names]
        self.save, self.restore = self.cache.save, self.cache.restore

    def run(self, ids: Sequence[int], n_past: int, n_last: int) -> np.ndarray:
        """See `Decoder`."""
        n = len(ids)
        if n_past == 0:
            self.cache.reset()
        self.ids[0, :n] = ids
        self.keep[...] = max(1, n_last)
        arrays = {
            IDS: self.ids[:, :n],
            POSITIONS: self.positions[:, n_past : n_past + n],
            MASK: self.mask[:, : n_past + n],
            KEEP: self.keep,
        }
        given = {name: _value(array) for name, array in arrays.items() if name in self.inputs}
        try:
            logits, *present = self.session.run_with_ort_values(self.wanted, given | self.cache.values)
        except Exception as error:
            raise run_fault(self.path, error) from None
        self.cache.take(present)
        return self.rows(logits.numpy(), n_last)


def _value(array: np.ndarray) -> Any:
    """Over the array's own memory."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
