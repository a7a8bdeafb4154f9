"""BertModel and its kin (MiniLM, BGE, E5), and BertForSequenceClassification, as llama.cpp's `bert`.

Every token is of type 0 there, the first segment of a pair. Checked against llama.cpp's `conversion/bert.py` and
`src/models/bert.cpp`, and by comparing embeddings and class scores.
"""

from collections.abc import Iterator

from edgeft.export.gguf.architectures._encoder import (
    GELU,
    IGNORED,
    classifier,
    classifies,
    encoder_metadata,
    linear,
    norm,
)
from edgeft.export.gguf.architectures._pooling import pooling_metadata
from edgeft.export.gguf.architectures._settings import require
from edgeft.export.gguf.architectures.base import Architecture, Config, Metadata, TensorRule


def hyperparameters(config: Config) -> Metadata:
    """The `bert.…` keys. Raises ModelError for settings that llama.cpp's graph does not have."""
    require(config, "hidden_act", *GELU)
    require(config, "position_embedding_type", "absolute")
    require(config, "is_decoder", False)
    return encoder_metadata(config)


def tensors(config: Config) -> Iterator[TensorRule]:
    """Every tensor of the file, in order."""
    width, n_positions = config["hidden_size"], config["max_position_embeddings"]
    yield from embeddings(config)
    yield TensorRule("position_embd.weight", ("embeddings.position_embeddings.weight",), (n_positions, width))
    if classifies(config):
        yield from linear("cls", "pooler.dense", (width, width))
        yield from classifier(config, "classifier")
    for layer in range(config["num_hidden_layers"]):
        yield from block(config, layer)


def embeddings(config: Config) -> Iterator[TensorRule]:
    """Token and token-type embeddings, and their norm."""
    width = config["hidden_size"]
    yield TensorRule("token_embd.weight", ("embeddings.word_embeddings.weight",), (config["vocab_size"], width))
    types = (config["type_vocab_size"], width)
    yield TensorRule("token_types.weight", ("embeddings.token_type_embeddings.weight",), types)
    yield from norm("token_embd_norm", "embeddings.LayerNorm", width)


def block(config: Config, layer: int) -> Iterator[TensorRule]:
    """The tensors of one layer."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    ours, theirs = f"blk.{layer}", f"encoder.layer.{layer}"
    yield from linear(f"{ours}.attn_q", f"{theirs}.attention.self.query", (width, width))
    yield from linear(f"{ours}.attn_k", f"{theirs}.attention.self.key", (width, width))
    yield from linear(f"{ours}.attn_v", f"{theirs}.attention.self.value", (width, width))
    yield from linear(f"{ours}.attn_output", f"{theirs}.attention.output.dense", (width, width))
    yield from norm(f"{ours}.attn_output_norm", f"{theirs}.attention.output.LayerNorm", width)
    yield from linear(f"{ours}.ffn_up", f"{theirs}.intermediate.dense", (inner, width))
    yield from linear(f"{ours}.ffn_down", f"{theirs}.output.dense", (width, inner))
    yield from norm(f"{ours}.layer_output_norm", f"{theirs}.output.LayerNorm", width)


ARCHITECTURE = Architecture(
    name="bert",
    hyperparameters=hyperparameters,
    tensors=tensors,
    defaults={
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
    },
    renames=((r"^bert\.", ""), (r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    ignored=IGNORED,
    other_files=pooling_metadata,
)
