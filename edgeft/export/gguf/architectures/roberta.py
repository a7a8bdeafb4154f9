"""RobertaModel and RobertaForSequenceClassification as llama.cpp's `bert`, without the positions before the first.

RoBERTa counts positions from pad_token_id + 1. Checked against llama.cpp's `conversion/bert.py` and
`src/models/bert.cpp`, and by comparing embeddings and class scores.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from edgeft.export.gguf.architectures import bert
from edgeft.export.gguf.architectures._encoder import classifier, classifies, linear
from edgeft.export.gguf.architectures.base import Config, Metadata, TensorRule


def hyperparameters(config: Config) -> Metadata:
    """The `bert.…` keys. Raises ModelError for settings that llama.cpp's graph does not have."""
    return bert.hyperparameters(config) | {"context_length": config["max_position_embeddings"] - _offset(config)}


def tensors(config: Config) -> Iterator[TensorRule]:
    """Every tensor of the file, in order."""
    width, n_positions, offset = config["hidden_size"], config["max_position_embeddings"], _offset(config)

    def from_the_first(positions: np.ndarray) -> np.ndarray:
        return positions[offset:]

    yield from bert.embeddings(config)
    yield TensorRule(
        "position_embd.weight",
        ("embeddings.position_embeddings.weight",),
        (n_positions - offset, width),
        from_the_first,
        stored=((n_positions, width),),
    )
    if classifies(config):
        yield from linear("cls", "classifier.dense", (width, width))
        yield from classifier(config, "classifier.out_proj")
    for layer in range(config["num_hidden_layers"]):
        yield from bert.block(config, layer)


def _offset(config: Config) -> int:
    """Rows of the position embedding that no token uses."""
    pad: int = config["pad_token_id"]
    return pad + 1


ARCHITECTURE = replace(
    bert.ARCHITECTURE,
    hyperparameters=hyperparameters,
    tensors=tensors,
    defaults={**bert.ARCHITECTURE.defaults, "pad_token_id": 1},
    renames=((r"^roberta\.", ""),),
)
