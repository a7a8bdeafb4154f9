"""From a model folder to the list of what its GGUF file holds."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np

from edgeft.errors import ModelError
from edgeft.export.folder import Checkpoint, ModelFolder, StoredTensor
from edgeft.export.gguf.architectures import Architecture, Config, Metadata, TensorRule, architecture_of

EMBEDDING = "token_embd.weight"
HEAD = "lm_head.weight"
COMPARED_WEIGHTS = 1 << 20
"""Of two matrices that may be equal, as many weights are held at once."""


@dataclass(frozen=True)
class Layout:
    """All of a GGUF file but its tokenizer."""

    architecture: str
    """llama.cpp's name (`general.architecture`)."""
    hyperparameters: Metadata
    """The `<architecture>.…` keys."""
    rules: tuple[TensorRule, ...]
    """The tensors in the file's order; their sources are names of `checkpoint`."""
    checkpoint: Checkpoint
    """The folder's weights under the names that `rules` uses."""
    n_vocab: int
    """Rows of the embedding."""


def lay_out(folder: ModelFolder, checkpoint: Checkpoint, architecture: Architecture | None = None) -> Layout:
    """What the GGUF file of `folder` holds; `architecture` replaces the one config.json names.

    Raises ModelError for an unsupported architecture or setting, and unless the checkpoint has exactly the
    tensors that config.json promises.
    """
    architecture = architecture or architecture_of(folder.config, folder.path)
    checkpoint = replace(checkpoint, tensors=_renamed(checkpoint, architecture))
    config = _untied(full_config(folder.config, architecture), checkpoint, architecture)
    hyperparameters = architecture.hyperparameters(config) | architecture.other_files(folder.path)
    rules = tuple(architecture.tensors(config))
    _check(rules, checkpoint, architecture)
    return Layout(
        architecture=architecture.name,
        hyperparameters={_full(key, architecture): value for key, value in hyperparameters.items()},
        rules=rules,
        checkpoint=checkpoint,
        n_vocab=next(rule.shape[0] for rule in rules if rule.name == EMBEDDING),
    )


def _full(key: str, architecture: Architecture) -> str:
    return key if key.startswith("tokenizer.") else f"{architecture.name}.{key}"


def full_config(config: Config, architecture: Architecture) -> Config:
    """The text model's part of config.json, with the architecture's defaults filled in."""
    # Of the same class as `config`, which refuses an absent key in words a user can act on.
    filled = type(config)(config if architecture.section is None else config[architecture.section])
    for key, value in architecture.defaults.items():
        filled.setdefault(key, value)
    return filled


def _renamed(checkpoint: Checkpoint, architecture: Architecture) -> dict[str, StoredTensor]:
    """The tensors of the checkpoint, each under the name the architecture's rules use."""

    def name_of(stored: str) -> str:
        for other, usual in architecture.renames:
            stored = re.sub(other, usual, stored)
        return stored

    return {name_of(name): tensor for name, tensor in checkpoint.tensors.items()}


def _untied(config: Config, checkpoint: Checkpoint, architecture: Architecture) -> Config:
    """`config` untied where the checkpoint holds a head that is not its embedding; transformers 5 loads both."""
    head = checkpoint.tensors.get(HEAD)
    if head is None or not config.get("tie_word_embeddings"):
        return config
    tied = next((rule for rule in architecture.tensors(config) if rule.name == EMBEDDING), None)
    embedding = checkpoint.tensors.get(tied.sources[0]) if tied else None
    if embedding is None or _same(head, embedding):
        return config
    return type(config)({**config, "tie_word_embeddings": False})


def _same(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two matrices hold the same numbers, whatever their types; a few rows at a time."""
    if one.shape != other.shape:
        return False
    step = max(1, COMPARED_WEIGHTS // max(1, one.shape[-1]))
    ranges = ((first, min(first + step, one.n_rows)) for first in range(0, one.n_rows, step))
    return all(np.array_equal(one.rows(*span), other.rows(*span)) for span in ranges)


def _check(rules: Iterable[TensorRule], checkpoint: Checkpoint, architecture: Architecture) -> None:
    """Raise ModelError unless the rules' sources are there in their shapes and nothing else is."""
    used = set()
    for rule in rules:
        for source, shape in rule.stored_shapes.items():
            stored = checkpoint.tensors.get(source)
            if stored is None:
                raise ModelError(f"{checkpoint.path}: the tensor {source} is missing from the weights")
            if stored.shape != shape:
                raise ModelError(f"{stored.file}: {source} has shape {stored.shape}; config.json says {shape}")
            used.add(source)
    left = [name for name in checkpoint.tensors if name not in used and not _ignored(name, architecture)]
    if left:
        raise ModelError(
            f"{checkpoint.path}: by config.json {len(left)} tensors have no place in a {architecture.name} "
            f"file: {', '.join(sorted(left)[:5])}"
        )


def _ignored(name: str, architecture: Architecture) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in architecture.ignored)
