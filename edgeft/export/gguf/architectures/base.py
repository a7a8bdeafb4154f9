"""The words an architecture's module is written in."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Config = dict[str, Any]
"""config.json, with `Architecture.defaults` filled in."""

Metadata = dict[str, int | float | bool | str | bytes | list[str] | list[int] | list[float] | list[bool]]
"""GGUF keys and values: int is written as uint32, float as float32, lists as arrays of int32, float32, …, bytes as
one of uint8."""


def unchanged(tensor: np.ndarray) -> np.ndarray:
    """The tensor as it is."""
    return tensor


def no_keys(_: Path) -> Metadata:
    """Nothing from other files of the folder."""
    return {}


@dataclass(frozen=True)
class TensorRule:
    """One tensor of the GGUF file: its name there, what it is made from and how.

    `change(*tensors)` takes the tensors of the checkpoint called `sources` and gives one of `shape`, which is
    what config.json promises; without sources it makes the tensor from nothing. `stored` are the shapes of the
    sources where they are not `shape` as well.
    """

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    change: Callable[..., np.ndarray] = unchanged
    stored: tuple[tuple[int, ...], ...] | None = None

    @property
    def stored_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape that each source must have in the checkpoint."""
        shapes = self.stored if self.stored is not None else (self.shape,) * len(self.sources)
        return dict(zip(self.sources, shapes, strict=True))


@dataclass(frozen=True)
class Architecture:
    """How one family of models is written.

    `hyperparameters` and `tensors` read config.json and raise ModelError for settings that llama.cpp's graph
    does not have.
    """

    name: str
    """llama.cpp's name (`general.architecture`)."""
    hyperparameters: Callable[[Config], Metadata]
    """The keys that llama.cpp calls `<name>.…`, without that beginning; those of the tokenizer as they are."""
    tensors: Callable[[Config], Iterable[TensorRule]]
    """Every tensor of the file, in order."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What transformers takes for keys that config.json may leave out."""
    section: str | None = None
    """The key of config.json under which the text model is described; None: config.json itself."""
    renames: tuple[tuple[str, str], ...] = ()
    """Other spellings of tensor names in checkpoints: regular expressions, each with what to put instead."""
    ignored: tuple[str, ...] = ()
    """Tensors of the checkpoint (after `renames`, `*` for anything) that the file does not hold."""
    other_files: Callable[[Path], Metadata] = no_keys
    """Keys read from other files of the model folder, named as those of `hyperparameters`."""
