"""GPT2LMHeadModel as llama.cpp's `gpt2`: learned positions, matrices stored the other way round (Conv1D).

Checked against llama.cpp's `conversion/gpt2.py` and `src/models/gpt2.cpp`, and by comparing logits.
"""

from collections.abc import Iterator

import numpy as np

from edgeft.export.gguf.architectures._settings import require
from edgeft.export.gguf.architectures.base import Architecture, Config, Metadata, TensorRule

GELU_TANH = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")
"""Names of the one approximation of GELU that llama.cpp has."""


def hyperparameters(config: Config) -> Metadata:
    """The `gpt2.…` keys. Raises ModelError for settings that llama.cpp's graph does not have."""
    require(config, "activation_function", *GELU_TANH)
    require(config, "scale_attn_weights", True)
    require(config, "scale_attn_by_inverse_layer_idx", False)
    require(config, "add_cross_attention", False)
    return {
        "vocab_size": config["vocab_size"],
        "context_length": config["n_positions"],
        "embedding_length": config["n_embd"],
        "block_count": config["n_layer"],
        "feed_forward_length": _inner(config),
        "attention.head_count": config["n_head"],
        "attention.layer_norm_epsilon": float(config["layer_norm_epsilon"]),
    }


def tensors(config: Config) -> Iterator[TensorRule]:
    """Every tensor of the file, in order."""
    n_vocab, width = config["vocab_size"], config["n_embd"]
    yield TensorRule("token_embd.weight", ("transformer.wte.weight",), (n_vocab, width))
    yield TensorRule("position_embd.weight", ("transformer.wpe.weight",), (config["n_positions"], width))
    yield from _norm("output_norm", "transformer.ln_f", width)
    if not config["tie_word_embeddings"]:
        yield TensorRule("output.weight", ("lm_head.weight",), (n_vocab, width))
    for layer in range(config["n_layer"]):
        ours, theirs = f"blk.{layer}", f"transformer.h.{layer}"
        yield from _norm(f"{ours}.attn_norm", f"{theirs}.ln_1", width)
        yield from _conv1d(f"{ours}.attn_qkv", f"{theirs}.attn.c_attn", 3 * width, width)
        yield from _conv1d(f"{ours}.attn_output", f"{theirs}.attn.c_proj", width, width)
        yield from _norm(f"{ours}.ffn_norm", f"{theirs}.ln_2", width)
        yield from _conv1d(f"{ours}.ffn_up", f"{theirs}.mlp.c_fc", _inner(config), width)
        yield from _conv1d(f"{ours}.ffn_down", f"{theirs}.mlp.c_proj", width, _inner(config))


def _inner(config: Config) -> int:
    inner: int = config["n_inner"] or 4 * config["n_embd"]
    return inner


def _norm(ours: str, theirs: str, width: int) -> Iterator[TensorRule]:
    for part in ("weight", "bias"):
        yield TensorRule(f"{ours}.{part}", (f"{theirs}.{part}",), (width,))


def _conv1d(ours: str, theirs: str, n_out: int, n_in: int) -> Iterator[TensorRule]:
    """A projection with bias that the checkpoint holds as (inputs, outputs)."""
    yield TensorRule(f"{ours}.weight", (f"{theirs}.weight",), (n_out, n_in), np.transpose, stored=((n_in, n_out),))
    yield TensorRule(f"{ours}.bias", (f"{theirs}.bias",), (n_out,))


ARCHITECTURE = Architecture(
    name="gpt2",
    hyperparameters=hyperparameters,
    tensors=tensors,
    defaults={
        "activation_function": "gelu_new",
        "n_inner": None,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
    renames=((r"^(h|wte|wpe|ln_f)\.", r"transformer.\1."),),
    ignored=("*.attn.bias", "*.attn.masked_bias", "lm_head.weight"),
)
