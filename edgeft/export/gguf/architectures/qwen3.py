"""Qwen3ForCausalLM as llama.cpp's `qwen3`: no biases, a norm on every head of q and k.

Checked against llama.cpp's `conversion/qwen.py` and `src/models/qwen3.cpp`, and by comparing logits.
"""

from collections.abc import Iterator
from dataclasses import replace

from edgeft.export.gguf.architectures import qwen2
from edgeft.export.gguf.architectures._decoder import attention, embeddings, gated_mlp, norms
from edgeft.export.gguf.architectures._settings import require
from edgeft.export.gguf.architectures.base import Config, Metadata, TensorRule
from edgeft.export.gguf.architectures.llama import NORMS

HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}


def hyperparameters(config: Config) -> Metadata:
    """The `qwen3.…` keys. Raises ModelError for settings that llama.cpp's graph does not have."""
    require(config, "attention_bias", False)
    return qwen2.hyperparameters(config)


def tensors(config: Config) -> Iterator[TensorRule]:
    """Every tensor of the file, in order."""
    yield from embeddings(config)
    for layer in range(config["num_hidden_layers"]):
        yield from normed_attention(config, layer)
        yield from gated_mlp(config, layer)


def normed_attention(config: Config, layer: int) -> Iterator[TensorRule]:
    """The norms of a layer and its projections."""
    yield from norms(layer, NORMS, config["hidden_size"])
    yield from attention(config, layer)
    yield from norms(layer, HEAD_NORMS, config["head_dim"])


ARCHITECTURE = replace(
    qwen2.ARCHITECTURE,
    name="qwen3",
    hyperparameters=hyperparameters,
    tensors=tensors,
    defaults={**qwen2.QWEN_DEFAULTS, "num_key_value_heads": 32, "head_dim": 128},
)
