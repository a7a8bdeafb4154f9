"""LlamaForCausalLM as llama.cpp's `llama`.

Checked against llama.cpp's `conversion/llama.py` and `src/models/llama.cpp`, and by comparing logits.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from edgeft.errors import ModelError
from edgeft.export.gguf.architectures.base import Architecture, Metadata, TensorRule, unchanged


def hyperparameters(config: dict[str, Any]) -> Metadata:
    """The `llama.…` keys. Raises ModelError for settings that llama.cpp's graph does not have."""
    _check(config)
    rope = rope_parameters(config)
    head_dim = _head_dim(config)
    metadata: Metadata = {
        "vocab_size": config["vocab_size"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": _n_kv_heads(config),
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if rope["rope_type"] == "linear":
        metadata["rope.scaling.type"] = "linear"
        metadata["rope.scaling.factor"] = float(rope["factor"])
    return metadata


def tensors(config: dict[str, Any]) -> Iterator[TensorRule]:
    """Every tensor of the file, in order."""
    n_vocab, width = config["vocab_size"], config["hidden_size"]
    yield TensorRule("token_embd.weight", ("model.embed_tokens.weight",), (n_vocab, width))
    yield TensorRule("output_norm.weight", ("model.norm.weight",), (width,))
    if not config.get("tie_word_embeddings", False):
        yield TensorRule("output.weight", ("lm_head.weight",), (n_vocab, width))
    rope = rope_parameters(config)
    if rope["rope_type"] == "llama3":
        factors = llama3_rope_factors(rope, _head_dim(config))
        yield TensorRule("rope_freqs.weight", (), factors.shape, lambda: factors)
    for layer in range(config["num_hidden_layers"]):
        yield from _block(config, layer)


def _block(config: dict[str, Any], layer: int) -> Iterator[TensorRule]:
    width, inner = config["hidden_size"], config["intermediate_size"]
    n_heads, n_kv_heads = config["num_attention_heads"], _n_kv_heads(config)
    q_width, kv_width = n_heads * _head_dim(config), n_kv_heads * _head_dim(config)
    ours, theirs = f"blk.{layer}", f"model.layers.{layer}"
    attention, mlp = config.get("attention_bias", False), config.get("mlp_bias", False)

    yield TensorRule(f"{ours}.attn_norm.weight", (f"{theirs}.input_layernorm.weight",), (width,))
    yield TensorRule(f"{ours}.ffn_norm.weight", (f"{theirs}.post_attention_layernorm.weight",), (width,))
    for name, source, shape, bias, change in (
        ("attn_q", "self_attn.q_proj", (q_width, width), attention, interleaved(n_heads)),
        ("attn_k", "self_attn.k_proj", (kv_width, width), attention, interleaved(n_kv_heads)),
        ("attn_v", "self_attn.v_proj", (kv_width, width), attention, unchanged),
        ("attn_output", "self_attn.o_proj", (width, q_width), attention, unchanged),
        ("ffn_gate", "mlp.gate_proj", (inner, width), mlp, unchanged),
        ("ffn_up", "mlp.up_proj", (inner, width), mlp, unchanged),
        ("ffn_down", "mlp.down_proj", (width, inner), mlp, unchanged),
    ):
        yield TensorRule(f"{ours}.{name}.weight", (f"{theirs}.{source}.weight",), shape, change)
        if bias:
            yield TensorRule(f"{ours}.{name}.bias", (f"{theirs}.{source}.bias",), shape[:1], change)


def interleaved(n_heads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Reorder the output rows of a q or k projection (rows, …) for llama.cpp's rotary embedding.

    transformers rotates row i of a head with row i + head_dim/2; llama.cpp rotates rows 2i and 2i + 1.
    """

    def change(tensor: np.ndarray) -> np.ndarray:
        halves = tensor.reshape(n_heads, 2, tensor.shape[0] // n_heads // 2, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape)

    return change


def rope_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """`rope_theta`, `rope_type` and the scaling's fields, wherever this version of transformers put them."""
    rope = {"rope_theta": config.get("rope_theta", 10000.0)}
    rope |= config.get("rope_scaling") or {}
    rope |= config.get("rope_parameters") or {}
    rope.setdefault("rope_type", rope.get("type", "default"))
    return rope


def llama3_rope_factors(rope: dict[str, Any], head_dim: int) -> np.ndarray:
    """What Llama 3's scaling divides each rotary frequency by, (head_dim/2,) float32.

    Long wavelengths are slowed by `factor`, short ones left, those between blended
    (`_compute_llama3_parameters` in transformers' `modeling_rope_utils.py`).
    """
    wavelengths = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    context = rope["original_max_position_embeddings"]
    blend = (context / wavelengths - low) / (high - low)
    between = 1 / ((1 - blend) / factor + blend)
    factors = np.where(wavelengths > context / low, factor, between)
    return np.where(wavelengths < context / high, 1.0, factors).astype(np.float32)


ROPE_TYPES = ("default", "linear", "llama3")

ARCHITECTURE = Architecture(
    name="llama",
    hyperparameters=hyperparameters,
    tensors=tensors,
    ignored=("*.rotary_emb.inv_freq", "lm_head.weight"),
)


def _check(config: dict[str, Any]) -> None:
    rope_type = rope_parameters(config)["rope_type"]
    if rope_type not in ROPE_TYPES:
        raise ModelError(f"config.json: rope_type {rope_type!r} is not supported; only {', '.join(ROPE_TYPES)}")
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelError(f"config.json: hidden_act {activation!r}: llama.cpp's llama graph has only silu")
    if rope_parameters(config).get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError("config.json: partial_rotary_factor: llama.cpp's llama graph rotates whole heads")


def _head_dim(config: dict[str, Any]) -> int:
    head_dim: int = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return head_dim


def _n_kv_heads(config: dict[str, Any]) -> int:
    n_heads: int = config.get("num_key_value_heads") or config["num_attention_heads"]
    return n_heads
