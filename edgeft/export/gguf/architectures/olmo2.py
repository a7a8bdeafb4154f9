"""Olmo2ForCausalLM as llama.cpp's `olmo2`: norms behind attention and feed-forward, and on all of q and of k.

Checked against llama.cpp's `conversion/olmo.py` and `src/models/olmo2.cpp`, and by comparing logits.
"""

from collections.abc import Iterator
from dataclasses import replace

from edgeft.errors import ModelError
from edgeft.export.gguf.architectures._decoder import (
    DEFAULTS,
    IGNORED,
    RENAMES,
    attention,
    decoder_metadata,
    embeddings,
    gated_mlp,
    norms,
    sizes_of,
)
from edgeft.export.gguf.architectures._rope import rope_metadata
from edgeft.export.gguf.architectures._settings import require
from edgeft.export.gguf.architectures.base import Architecture, Config, Metadata, TensorRule

NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}


def hyperparameters(config: Config) -> Metadata:
    """The `olmo2.…` keys. Raises ModelError for settings that llama.cpp's graph does not have."""
    require(config, "hidden_act", "silu")
    require(config, "attention_bias", False)
    sizes = sizes_of(config)
    if sizes.q_width != sizes.width:
        raise ModelError(
            f"config.json: head_dim {sizes.head_dim}: llama.cpp's graph for olmo2 has only hidden_size / heads"
        )
    return decoder_metadata(config) | rope_metadata(config, sizes.head_dim)


def tensors(config: Config) -> Iterator[TensorRule]:
    """Every tensor of the file, in order. llama.cpp wants the head even where it is the embedding."""
    sizes = sizes_of(config)
    rules = list(embeddings(config))
    yield from rules
    if config["tie_word_embeddings"]:
        yield replace(rules[0], name="output.weight")
    for layer in range(sizes.n_layers):
        yield from attention(config, layer)
        yield from norms(layer, {"attn_q_norm": "self_attn.q_norm"}, sizes.q_width)
        yield from norms(layer, {"attn_k_norm": "self_attn.k_norm"}, sizes.kv_width)
        yield from norms(layer, NORMS, sizes.width)
        yield from gated_mlp(config, layer)


ARCHITECTURE = Architecture(
    name="olmo2",
    hyperparameters=hyperparameters,
    tensors=tensors,
    defaults={**DEFAULTS, "rms_norm_eps": 1e-5},
    renames=RENAMES,
    ignored=IGNORED,
)
