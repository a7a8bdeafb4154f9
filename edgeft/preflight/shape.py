"""The shape of a model from its config.json and the headers of its safetensors files; no weight is read."""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeft.checkpoint_files import weight_files
from edgeft.errors import ModelError

# Matrices that no adapter of `all-linear` sits on: embeddings and the language-model head.
TABLE = re.compile(r"embed|\bwte\b|\bwpe\b|lm_head")


@dataclass(frozen=True)
class Shape:
    """The model: `n_params` weights; widths and counts from config.json; `matrices` the two sides of
    each linear layer but the head, by name; `tensors` counts the weights of every tensor."""

    n_params: int
    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    inner: int = 0
    heads: int = 1
    kv_heads: int = 1
    head_width: int = 0
    matrices: dict[str, tuple[int, int]] = field(default_factory=dict)
    tensors: dict[str, int] = field(default_factory=dict)

    @property
    def linear(self) -> int:
        """Weights of the linear layers but the head: what every token is multiplied by."""
        return sum(math.prod(sides) for sides in self.matrices.values())

    @property
    def head(self) -> int:
        """Weights of the head over the vocabulary."""
        return self.vocab_size * self.hidden_size


def read_shape(folder: Path) -> Shape:
    """The shape of the model in a Hugging Face folder. Raises ModelError when it cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        tensors: dict[str, list[int]] = {}
        for path in weight_files(folder):
            tensors |= _read_header(path)
        if not tensors:
            raise ModelError(f"{folder}: no *.safetensors weights")
        return _shape(config, tensors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder}: cannot read the shape of the model ({error!r}); is it whole?") from None


def _read_header(path: Path) -> dict[str, list[int]]:
    with path.open("rb") as file:
        header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), 100_000_000)))
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}


def _shape(config: dict[str, Any], tensors: dict[str, list[int]]) -> Shape:
    def first(*names: str) -> int:
        """The same number has another name in GPT-2 (`n_embd`) and DistilBERT (`dim`)."""
        return int(next(config[name] for name in names if config.get(name)))

    try:
        hidden = first("hidden_size", "n_embd", "dim")
        layers = first("num_hidden_layers", "n_layer", "n_layers")
    except StopIteration:
        raise KeyError("hidden_size or num_hidden_layers") from None
    heads = int(config.get("num_attention_heads") or config.get("n_head") or config.get("n_heads") or 1)
    counts = {name: math.prod(shape) for name, shape in tensors.items()}
    matrices = {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in tensors.items()
        if len(shape) == 2 and not TABLE.search(name)
    }
    return Shape(
        n_params=sum(counts.values()),
        hidden_size=hidden,
        num_hidden_layers=layers,
        vocab_size=int(config["vocab_size"]),
        inner=int(config.get("intermediate_size") or config.get("n_inner") or config.get("hidden_dim") or 4 * hidden),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_width=int(config.get("head_dim") or hidden // heads),
        matrices=matrices,
        tensors=counts,
    )
