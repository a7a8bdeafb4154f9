"""Running tokens through a decoder graph behind those already run, one sequence at a time.

Graphs whose GroupQueryAttention nodes write keys and values in place run with everything bound once (SharedDecoder);
any other graph with past_key_values gets back what it gave (GrowingDecoder).

Shapes: T tokens of a call, P tokens before it, N positions the context holds, V entries of the vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.errors import ModelError
from edgeft.runtime.onnx_cache import (
    NUMPY_TYPES,
    PAST,
    CacheEntry,
    GrowingCache,
    SharedCache,
    cache_entries,
    split_state,
)
from edgeft.runtime.onnx_file import OnnxFile
from edgeft.runtime.onnx_session import DEVICES, run_fault
from edgeft.runtime.ort import onnxruntime

IDS, MASK, POSITIONS, KEEP, LOGITS = "input_ids", "attention_mask", "position_ids", "num_logits_to_keep", "logits"
MASKS_AHEAD = 64
IN_PLACE = {"GroupQueryAttention"}
"""Operators (onnxruntime, docs/ContribOperators.md) that take one buffer as past and present."""


def open_decoder(session: Any, checked: OnnxFile, sizes: Mapping[str, int], n_ctx: int) -> "Decoder":
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


class Decoder(ABC):
    """A graph with the keys and values of one sequence, and the arrays behind its other inputs."""

    cache: SharedCache | GrowingCache

    def __init__(self, session: Any, path: Path, entries: Sequence[CacheEntry], n_ctx: int) -> None:
        self.session, self.path, self.entries = session, path, entries
        self.device = DEVICES.get(session.get_providers()[0], "cpu")
        # An input with a default (an initializer of the same name) may be left out, and is listed apart.
        self.inputs = {put.name for put in (*session.get_inputs(), *session.get_overridable_initializers())}
        logits = next(each for each in session.get_outputs() if each.name == LOGITS)
        self.kind = NUMPY_TYPES[logits.type]
        self.n_vocab = logits.shape[2] if isinstance(logits.shape[2], int) else 0
        self.all_rows = logits.shape[1] != 1
        """Whether a call can give the logits of all its tokens, not only of the last."""
        self.lean = KEEP in self.inputs or not self.all_rows
        """Whether a call computes no more logits than are asked for."""
        self.bytes_per_token = sum(each.bytes_per_token for each in entries)
        """Of keys and values."""
        self.ids = np.zeros((1, n_ctx), np.int64)
        self.positions = np.arange(n_ctx, dtype=np.int64)[None]
        self.mask = np.ones((1, n_ctx), np.int64)
        self.keep_logits = np.ones((), np.int64)

    @property
    def layout(self) -> str:
        """What a saved state is made of: `60 x float32 (3, 64)`."""
        kinds = [f"{each.kind} ({each.heads}, {each.width})" for each in self.entries]
        return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))

    @abstractmethod
    def run(self, ids: Sequence[int], n_past: int, n_last: int) -> np.ndarray:
        """Run `ids` behind `n_past` tokens; logits (n_last, V) float32 of the last of them, good until the next call.

        Raises RuntimeFault when onnxruntime fails.
        """

    def run_one(self, token: int, n_past: int) -> np.ndarray:
        """The same for one token; its logits (V,)."""
        logits: np.ndarray = self.run([token], n_past, 1)[0]
        return logits

    def keep(self, n: int) -> None:
        """Forget all but the first `n` tokens."""
        self.cache.keep(n)

    def save(self, n_past: int) -> list[np.ndarray]:
        """The keys and values of the first `n_past` tokens, good until the next call."""
        return self.cache.save(n_past)

    def restore(self, state: memoryview, n_past: int) -> None:
        """Put back the bytes of what `save` gave."""
        self.cache.restore(split_state(self.entries, state, n_past))

    def rows(self, logits: np.ndarray, n_last: int) -> np.ndarray:
        """(n_last, V) float32 of the output (1, tokens, V)."""
        wanted = logits[0, logits.shape[1] - n_last :]
        return wanted if wanted.dtype == np.float32 else wanted.astype(np.float32)


class SharedDecoder(Decoder):
    """For a token only the mask's shape is bound anew; nothing is allocated or copied."""

    def __init__(self, session: Any, path: Path, entries: Sequence[CacheEntry], n_ctx: int) -> None:
        super().__init__(session, path, entries, n_ctx)
        shared = self.cache = SharedCache(entries, n_ctx, self.device)
        self.binding = session.io_binding()
        shared.bind(self.binding)
        if KEEP in self.inputs:
            self._bind(KEEP, self.keep_logits, ())
        self.masks: dict[int, Any] = {}
        """The mask by its length; made some at a time, in a row: after a run nothing is in the processor's caches,
        and making one then takes longer than 64 do here."""
        self.token, self.position = np.zeros(1, np.int64), np.zeros(1, np.int64)
        self.row = np.zeros(self.n_vocab, self.kind)
        """The logits of a single token."""
        self.is_float = self.kind == np.float32
        self.bound_for_one = False

    def run(self, ids: Sequence[int], n_past: int, n_last: int) -> np.ndarray:
        """See `Decoder.run`."""
        if len(ids) == 1 and self.n_vocab:
            return self.run_one(ids[0], n_past)[None][:n_last]
        n, self.bound_for_one = len(ids), False
        self.ids[0, :n] = ids
        self._bind(IDS, self.ids, (1, n))
        if POSITIONS in self.inputs:
            self._bind(POSITIONS, self.positions[:, n_past:], (1, n))
        self.keep_logits[...] = max(1, n_last)
        self.binding.bind_output(LOGITS, "cpu")  # its shape depends on this call
        self._run(n_past + n)
        return self.rows(self._made_logits(), n_last)

    def run_one(self, token: int, n_past: int) -> np.ndarray:
        """See `Decoder.run_one`. Python's share of the time: after a run nothing is in the processor's caches, so
        every object that is touched counts."""
        if not self.n_vocab:
            return super().run_one(token, n_past)
        if not self.bound_for_one:
            self.bound_for_one = True
            self.keep_logits[...] = 1
            self._bind(IDS, self.token, (1, 1))
            if POSITIONS in self.inputs:
                self._bind(POSITIONS, self.position, (1, 1))
            shape, address = (1, 1, self.n_vocab), self.row.ctypes.data
            self.binding.bind_output(LOGITS, "cpu", 0, self.kind.type, shape, address)
        self.token[0] = token
        self.position[0] = n_past
        self._run(n_past + 1)
        return self.row if self.is_float else self.row.astype(np.float32)

    def _run(self, n_total: int) -> None:
        if MASK in self.inputs:
            if n_total not in self.masks:
                lengths = range(n_total, min(n_total + MASKS_AHEAD, self.mask.shape[1] + 1))
                self.masks |= {length: _value(self.mask[:, :length]) for length in lengths}
            self.binding.bind_ortvalue_input(MASK, self.masks[n_total])
        try:
            self.session.run_with_iobinding(self.binding)
        except Exception as error:
            raise run_fault(self.path, error) from None

    def _bind(self, name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
        self.binding.bind_input(name, "cpu", 0, array.dtype.type, shape, array.ctypes.data)

    def _made_logits(self) -> np.ndarray:
        logits: np.ndarray = self.binding.get_outputs()[len(self.entries)].numpy()
        return logits


class GrowingDecoder(Decoder):
    """The graph makes longer keys and values each time; they are handed on as they are."""

    def __init__(self, session: Any, path: Path, entries: Sequence[CacheEntry], n_ctx: int) -> None:
        super().__init__(session, path, entries, n_ctx)
        self.cache: GrowingCache = GrowingCache(entries, self.device)
        self.wanted = [LOGITS, *self.cache.names]

    def run(self, ids: Sequence[int], n_past: int, n_last: int) -> np.ndarray:
        """See `Decoder.run`."""
        n = len(ids)
        self.ids[0, :n] = ids
        self.keep_logits[...] = max(1, n_last)
        arrays = {
            IDS: self.ids[:, :n],
            POSITIONS: self.positions[:, n_past : n_past + n],
            MASK: self.mask[:, : n_past + n],
            KEEP: self.keep_logits,
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
