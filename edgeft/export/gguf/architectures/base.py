"""The words an architecture's module is written in."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

Metadata = dict[str, int | float | bool | str | list[str] | list[int] | list[float]]
"""GGUF keys and values: int is written as uint32, float as float32, lists as arrays of int32 or float32."""


def unchanged(tensor: np.ndarray) -> np.ndarray:
    """The tensor as it is."""
    return tensor


@dataclass(frozen=True)
class TensorRule:
    """One tensor of the GGUF file: its name there, where it comes from and what is done to it.

    `shape` is what config.json promises. `source` is the name in the checkpoint; without one, `change` makes
    the tensor from an empty array.
    """

    name: str
    source: str | None
    shape: tuple[int, ...]
    change: Callable[[np.ndarray], np.ndarray] = unchanged


@dataclass(frozen=True)
class Architecture:
    """How one family of models is written.

    `hyperparameters` and `tensors` read config.json; both raise ModelError for settings llama.cpp does not
    have. `ignored` are endings of checkpoint tensors that are computed again at run time.
    """

    name: str
    """llama.cpp's name (`general.architecture`)."""
    hyperparameters: Callable[[dict[str, Any]], Metadata]
    tensors: Callable[[dict[str, Any]], Iterable[TensorRule]]
    ignored: tuple[str, ...] = ()
