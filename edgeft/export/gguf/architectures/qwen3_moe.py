"""Qwen3MoeForCausalLM as llama.cpp's `qwen3moe`: Qwen 3 with experts in every layer, stacked into one tensor.

Checked against llama.cpp's `conversion/qwen.py` and `src/models/qwen3moe.cpp`, and by comparing logits.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from edgeft.errors import ModelError
from edgeft.export.gguf.architectures import qwen3
from edgeft.export.gguf.architectures._decoder import embeddings, linear
from edgeft.export.gguf.architectures._settings import require
from edgeft.export.gguf.architectures.base import Config, Metadata, TensorRule


def hyperparameters(config: Config) -> Metadata:
    """The `qwen3moe.…` keys. Raises ModelError for settings that llama.cpp's graph does not have."""
    require(config, "norm_topk_prob", True)
    check_layers(config)
    return qwen3.hyperparameters(config) | {
        "expert_count": n_experts(config),
        "expert_used_count": config["num_experts_per_tok"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
    }


def check_layers(config: Config) -> None:
    """Raises ModelError for layers without experts."""
    require(config, "decoder_sparse_step", 1)
    if config["mlp_only_layers"]:
        raise ModelError("config.json: mlp_only_layers: the graph for qwen3_moe has experts in every layer")


def n_experts(config: Config) -> int:
    """Experts a layer; the key has two names."""
    number: int = config["num_experts"] if "num_experts" in config else config["num_local_experts"]
    return number


def tensors(config: Config) -> Iterator[TensorRule]:
    """Every tensor of the file, in order."""
    width = config["hidden_size"]
    yield from embeddings(config)
    for layer in range(config["num_hidden_layers"]):
        yield from qwen3.normed_attention(config, layer)
        yield from linear(layer, "ffn_gate_inp", "mlp.gate", (n_experts(config), width))
        yield from _experts(config, layer)


def _experts(config: Config, layer: int) -> Iterator[TensorRule]:
    number, width, inner = n_experts(config), config["hidden_size"], config["moe_intermediate_size"]
    for name, shape in (("gate", (inner, width)), ("up", (inner, width)), ("down", (width, inner))):
        yield TensorRule(
            f"blk.{layer}.ffn_{name}_exps.weight",
            tuple(f"model.layers.{layer}.mlp.experts.{expert}.{name}_proj.weight" for expert in range(number)),
            (number, *shape),
            stacked,
            stored=(shape,) * number,
        )


def stacked(*experts: np.ndarray) -> np.ndarray:
    """The experts' matrices, one after the other."""
    return np.stack(experts)


ARCHITECTURE = replace(
    qwen3.ARCHITECTURE,
    name="qwen3moe",
    hyperparameters=hyperparameters,
    tensors=tensors,
    defaults={
        **qwen3.ARCHITECTURE.defaults,
        "num_key_value_heads": 4,
        "max_window_layers": 0,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": None,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
    },
)
