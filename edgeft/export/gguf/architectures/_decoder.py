"""What decoders share: sizes, keys, embeddings, grouped attention and gated feed-forward layers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from edgeft.export.gguf.architectures.base import Config, Metadata, TensorRule, unchanged

Change = Callable[[np.ndarray], np.ndarray]

DEFAULTS = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
"""transformers' defaults that most decoders share."""

RENAMES = ((r"^(layers|embed_tokens|norm)\.", r"model.\1."),)
"""Names in a checkpoint of the model without its head."""

IGNORED = ("*.rotary_emb.inv_freq", "lm_head.weight")
"""Computed at run time; and the head of a model that ties it, which some checkpoints store once more."""


@dataclass(frozen=True)
class Sizes:
    """The numbers that shapes are made of."""

    n_vocab: int
    width: int
    inner: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int

    @property
    def q_width(self) -> int:
        """Outputs of the query projection."""
        return self.n_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Outputs of the key projection, and of the value projection."""
        return self.n_kv_heads * self.head_dim


def sizes_of(config: Config) -> Sizes:
    """The sizes in config.json; null head counts and widths mean what transformers takes them for."""
    n_heads = config["num_attention_heads"]
    return Sizes(
        n_vocab=config["vocab_size"],
        width=config["hidden_size"],
        inner=config["intermediate_size"],
        n_layers=config["num_hidden_layers"],
        n_heads=n_heads,
        n_kv_heads=config.get("num_key_value_heads") or n_heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // n_heads,
    )


def decoder_metadata(config: Config) -> Metadata:
    """The keys that every decoder with RMS norms has."""
    sizes = sizes_of(config)
    return {
        "vocab_size": sizes.n_vocab,
        "context_length": config["max_position_embeddings"],
        "embedding_length": sizes.width,
        "block_count": sizes.n_layers,
        "feed_forward_length": sizes.inner,
        "attention.head_count": sizes.n_heads,
        "attention.head_count_kv": sizes.n_kv_heads,
        "attention.key_length": sizes.head_dim,
        "attention.value_length": sizes.head_dim,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
    }


def embeddings(config: Config, *, norm: Change = unchanged) -> Iterator[TensorRule]:
    """The token embedding, the last norm, and the head of a model that has its own."""
    sizes = sizes_of(config)
    yield TensorRule("token_embd.weight", ("model.embed_tokens.weight",), (sizes.n_vocab, sizes.width))
    yield TensorRule("output_norm.weight", ("model.norm.weight",), (sizes.width,), norm)
    headless = any(name.endswith("Model") for name in config.get("architectures") or ())
    if not config["tie_word_embeddings"] and not headless:
        yield TensorRule("output.weight", ("lm_head.weight",), (sizes.n_vocab, sizes.width))


def norms(layer: int, names: dict[str, str], width: int, change: Change = unchanged) -> Iterator[TensorRule]:
    """The norms of a layer: `names` are ours and, behind `model.layers.<layer>.`, the checkpoint's."""
    for ours, theirs in names.items():
        yield TensorRule(f"blk.{layer}.{ours}.weight", (f"model.layers.{layer}.{theirs}.weight",), (width,), change)


def attention(
    config: Config,
    layer: int,
    *,
    qkv_bias: bool = False,
    output_bias: bool = False,
    rotary: Callable[[int], Change] = lambda n_heads: unchanged,
) -> Iterator[TensorRule]:
    """The four projections; `rotary(n_heads)` changes the rows of q and of k."""
    sizes = sizes_of(config)
    q, k = rotary(sizes.n_heads), rotary(sizes.n_kv_heads)
    yield from linear(layer, "attn_q", "self_attn.q_proj", (sizes.q_width, sizes.width), qkv_bias, q)
    yield from linear(layer, "attn_k", "self_attn.k_proj", (sizes.kv_width, sizes.width), qkv_bias, k)
    yield from linear(layer, "attn_v", "self_attn.v_proj", (sizes.kv_width, sizes.width), qkv_bias)
    yield from linear(layer, "attn_output", "self_attn.o_proj", (sizes.width, sizes.q_width), output_bias)


def gated_mlp(config: Config, layer: int, *, bias: bool = False) -> Iterator[TensorRule]:
    """down(act(gate(x)) · up(x))."""
    sizes = sizes_of(config)
    yield from linear(layer, "ffn_gate", "mlp.gate_proj", (sizes.inner, sizes.width), bias)
    yield from linear(layer, "ffn_up", "mlp.up_proj", (sizes.inner, sizes.width), bias)
    yield from linear(layer, "ffn_down", "mlp.down_proj", (sizes.width, sizes.inner), bias)


def linear(
    layer: int, ours: str, theirs: str, shape: tuple[int, int], bias: bool = False, change: Change = unchanged
) -> Iterator[TensorRule]:
    """A projection (outputs, inputs) of a layer, with its bias if it has one."""
    to, source = f"blk.{layer}.{ours}", f"model.layers.{layer}.{theirs}"
    yield TensorRule(f"{to}.weight", (f"{source}.weight",), shape, change)
    if bias:
        yield TensorRule(f"{to}.bias", (f"{source}.bias",), shape[:1], change)


def plus_one(weight: np.ndarray) -> np.ndarray:
    """The weight of a norm that multiplies by 1 + weight, for a graph that multiplies by it."""
    return weight.astype(np.float32) + np.float32(1)
