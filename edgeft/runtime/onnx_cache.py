"""Keys and values of a sequence in onnxruntime, without a copy of ours for any token.

Shapes: L layers, H heads of keys and values, D values of a head, N positions the context holds, T tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime

from edgeft.errors import ModelError

PAST, PRESENT = "past_key_values.", "present."
NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True)
class CacheEntry:
    """One layer's keys or values, as the graph declares them."""

    past: str
    present: str
    heads: int
    width: int
    kind: Any
    """numpy type."""


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
        entries.append(CacheEntry(put.name, present, heads, width, NUMPY_TYPES[put.type]))
    if not entries:
        raise ModelError("the graph takes no past_key_values: it cannot generate; export it as text-generation")
    return entries


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

    def save(self, n_past: int) -> list[np.ndarray]:
        """Copies (1, H, n_past, D) of what is held."""
        held = self._arrays if self.device == "cpu" else [value.numpy() for value in self._values]
        return [each[:, :, :n_past].copy() for each in held]

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
        self.reset()

    def reset(self) -> None:
        """Forget the sequence."""
        empty = [np.zeros((1, each.heads, 0, each.width), each.kind) for each in self.entries]
        self.restore(empty)

    def take(self, present: Sequence[Any]) -> None:
        """The values a run gave for `names`."""
        self.values = {each.past: value for each, value in zip(self.entries, present, strict=True)}

    def save(self, n_past: int) -> list[np.ndarray]:
        """Copies (1, H, n_past, D) of what is held."""
        return [self.values[each.past].numpy()[:, :, :n_past].copy() for each in self.entries]

    def restore(self, held: Sequence[np.ndarray]) -> None:
        """Put back what `save` gave."""
        value = onnxruntime.OrtValue.ortvalue_from_numpy
        self.take([value(np.ascontiguousarray(part), self.device) for part in held])
