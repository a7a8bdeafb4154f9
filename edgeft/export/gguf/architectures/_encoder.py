"""What encoders share: keys, embeddings, linear layers and norms with biases, and the classification head."""

from collections.abc import Iterator
from typing import Any

from edgeft.export.gguf.architectures._pooling import RANK
from edgeft.export.gguf.architectures.base import Config, Metadata, TensorRule

GELU = ("gelu", "gelu_new", "gelu_pytorch_tanh")
"""GELU and the approximation by tanh that llama.cpp computes for all of them."""

IGNORED = ("embeddings.position_ids", "pooler.*", "cls.predictions.*", "cls.seq_relationship.*", "lm_head.*")
"""Position numbers, the pooler no one classifies with, and the heads of pre-training."""


def encoder_metadata(config: Config) -> Metadata:
    """The keys that every encoder has."""
    return {
        "vocab_size": config["vocab_size"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.layer_norm_epsilon": float(config["layer_norm_eps"]),
        "attention.causal": False,
        "tokenizer.ggml.token_type_count": config.get("type_vocab_size") or 1,
        **head_metadata(config),
    }


def classifies(config: Config) -> bool:
    """Whether the model has a head that classifies whole texts."""
    return any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or ())


def head_metadata(config: Config) -> Metadata:
    """The names of the classes, whose scores llama.cpp then gives out instead of an embedding."""
    if not classifies(config):
        return {}
    return {"pooling_type": RANK, "classifier.output_labels": labels(config)}


def labels(config: Config) -> list[str]:
    """The classes in the order of the head's outputs; transformers leaves them out where there are two."""
    named: dict[str, Any] = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return [str(named[key]) for key in sorted(named, key=int)]


def classifier(config: Config, theirs: str) -> Iterator[TensorRule]:
    """The last layer of the head, one output a class."""
    yield from linear("cls.output", theirs, (len(labels(config)), config["hidden_size"]))


def linear(ours: str, theirs: str, shape: tuple[int, int], *, bias: bool = True) -> Iterator[TensorRule]:
    """A projection (outputs, inputs) and its bias."""
    yield TensorRule(f"{ours}.weight", (f"{theirs}.weight",), shape)
    if bias:
        yield TensorRule(f"{ours}.bias", (f"{theirs}.bias",), shape[:1])


def norm(ours: str, theirs: str, width: int, *, bias: bool = True) -> Iterator[TensorRule]:
    """A layer norm."""
    for part in ("weight", "bias") if bias else ("weight",):
        yield TensorRule(f"{ours}.{part}", (f"{theirs}.{part}",), (width,))
