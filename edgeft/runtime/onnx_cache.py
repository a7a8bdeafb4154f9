"""Keys and values of a sequence in onnxruntime, without a copy of ours for any token.

Shapes: H heads of keys and values, D values of a head, N positions the context holds, P tokens held.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeft.errors import ModelError
from edgeft.runtime.ort import onnxruntime

PAST, PRESENT = "past_key_values.", "present."
NUMPY_TYPES: dict[str, np.dtype[Any]] = {"tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16)}


@dataclass(frozen=True)
class CacheEntry:
    """One layer's keys or values, as the graph declares them."""

    past: str
    present: str
    heads: int
    width: int
    kind: np.dtype[Any]

    @property
    def bytes_per_token(self) -> int:
        """Of one position."""
        return self.heads * self.width * self.kind.itemsize


def cache_entries(session: Any, sizes: Mapping[str, int]) -> list[CacheEntry]:
    """The keys and values `session` takes and gives back, in the order of its inputs.

    Sizes that the graph leaves open are `num_key_value_heads` and `head_dim` of `sizes`. Raises ModelError for a
    graph that has none or that gives back others than it takes.
    """
    given = {output.name for output in session.get_outputs()}
    entries = []
    for put in session.get_inputs():
        if not put.name.startswith(PAST):
            continue
        present = PRESENT + put.name.removeprefix(PAST)
        if present not in given or put.type not in NUMPY_TYPES or len(put.shape) != 4:
            raise ModelError(f"the graph takes {put.name} ({put.type}, {put.shape}) but does not give back {present}")
        heads = put.shape[1] if isinstance(put.shape[1], int) else sizes["num_key_value_heads"]
        width = put.shape[3] if isinstance(put.shape[3], int) else sizes["head_dim"]
        if not heads or not width:
            raise ModelError(f"neither the graph nor config.json says how large {put.name} is")
        entries.append(CacheEntry(put.name, present, heads, width, NUMPY_TYPES[put.type]))
    if not entries:
        raise ModelError("the graph takes no past_key_values: it cannot generate; export it as text-generation")
    return entries


def split_state(entries: Sequence[CacheEntry], state: memoryview, n_past: int) -> list[np.ndarray]:
    """The arrays (1, H, `n_past`, D) whose bytes, one behind the other, are `state`."""
    parts, at = [], 0
    for each in entries:
        end = at + n_past * each.bytes_per_token
        parts.append(np.frombuffer(state[at:end], each.kind).reshape(1, each.heads, n_past, each.width))
        at = end
    return parts


class SharedCache:
    """One buffer (1, H, N, D) for each entry, which GroupQueryAttention reads as past and extends as present."""

    def __init__(self, entries: Sequence[CacheEntry], n_ctx: int, device: str) -> None:
        self.entries, self.device = entries, device
        # On the processor an OrtValue lies over the array; zeros take no memory before they are written.
        self._arrays = [np.zeros((1, each.heads, n_ctx, each.width), each.kind) for each in entries]
        self._values = [onnxruntime.OrtValue.ortvalue_from_numpy(array, device) for array in self._arrays]

    def bind(self, binding: Any) -> None:
        """Once: the buffers stay bound."""
        for each, value in zip(self.entries, self._values, strict=True):
            binding.bind_ortvalue_input(each.past, value)
            binding.bind_ortvalue_output(each.present, value)

    def keep(self, n: int) -> None:
        """What lies behind the first `n` positions is overwritten before it is read."""

    def save(self, n_past: int) -> list[np.ndarray]:
        """The first `n_past` positions (1, H, P, D), good until the next run."""
        held = self._arrays if self.device == "cpu" else [value.numpy() for value in self._values]
        return [each[:, :, :n_past] for each in held]

    def restore(self, held: Sequence[np.ndarray]) -> None:
        """Put back what `save` gave."""
        for array, value, part in zip(self._arrays, self._values, held, strict=True):
            array[:, :, : part.shape[2]] = part
            if self.device != "cpu":
                value.update_inplace(array)


class GrowingCache:
    """For graphs that append to what they are given: what a run gives back is what the next one takes."""

    def __init__(self, entries: Sequence[CacheEntry], device: str) -> None:
        self.entries, self.device = entries, device
        self.names = [each.present for each in entries]
        self.keep(0)

    def take(self, present: Sequence[Any]) -> None:
        """The values a run gave for `names`."""
        self.values = {each.past: value for each, value in zip(self.entries, present, strict=True)}

    def keep(self, n: int) -> None:
        """Cut what is held to the first `n` positions."""
        if n:
            self.restore(self.save(n))
        else:
            self.restore([np.zeros((1, each.heads, 0, each.width), each.kind) for each in self.entries])

    def save(self, n_past: int) -> list[np.ndarray]:
        """The first `n_past` positions (1, H, P, D)."""
        return [self.values[each.past].numpy()[:, :, :n_past] for each in self.entries]

    def restore(self, held: Sequence[np.ndarray]) -> None:
        """Put back what `save` gave."""
        value = onnxruntime.OrtValue.ortvalue_from_numpy
        self.take([value(np.array(part, order="C"), self.device) for part in held])
