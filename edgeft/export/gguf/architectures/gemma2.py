"""Gemma2ForCausalLM as llama.cpp's `gemma2`: soft-capped logits, norms on both sides, every second layer sliding.

The graph scales the embedding by sqrt(width) and the queries by 1/sqrt(head_dim) in its code. Checked against
llama.cpp's `conversion/gemma.py` and `src/models/gemma2.cpp`, and by comparing logits.
"""

from collections.abc import Iterator

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
    plus_one,
    sizes_of,
)
from edgeft.export.gguf.architectures._rope import rope_metadata
from edgeft.export.gguf.architectures._settings import require
from edgeft.export.gguf.architectures._sliding import sliding_metadata
from edgeft.export.gguf.architectures.base import Architecture, Config, Metadata, TensorRule

NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
LAYERS_OF_27B = {"gemma2": 46, "gemma3_text": 62}
"""llama.cpp knows the largest model by its layers, and scales its queries by 1/sqrt(width / heads) instead."""

GEMMA_DEFAULTS = {
    **DEFAULTS,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
    "use_bidirectional_attention": None,
    "vocab_size": 256000,
}


def hyperparameters(config: Config) -> Metadata:
    """The `gemma2.…` keys. Raises ModelError for settings that llama.cpp's graph does not have."""
    require(config, "tie_word_embeddings", True)
    caps: Metadata = {}
    for ours in ("attn_logit_softcapping", "final_logit_softcapping"):
        if not config[ours]:
            raise ModelError(f"config.json: no {ours}: llama.cpp's graph for gemma2 always caps; it has no switch")
        caps[ours] = float(config[ours])
    sliding = sliding_metadata(config, config["sliding_window"], every=2)
    if not sliding:
        raise ModelError("config.json: no layer has the sliding window; llama.cpp's graph for gemma2 always slides")
    return gemma_metadata(config) | caps | sliding


def gemma_metadata(config: Config) -> Metadata:
    """What Gemma 2 and 3 have in common. Raises ModelError for settings that the graphs do not have."""
    require(config, "hidden_activation", "gelu_pytorch_tanh")
    require(config, "attention_bias", False)
    require(config, "use_bidirectional_attention", None, False)
    sizes = sizes_of(config)
    largest = sizes.n_layers == LAYERS_OF_27B[config["model_type"]]
    require(config, "query_pre_attn_scalar", sizes.width // sizes.n_heads if largest else sizes.head_dim)
    return decoder_metadata(config) | rope_metadata(config, sizes.head_dim)


def tensors(config: Config) -> Iterator[TensorRule]:
    """Every tensor of the file, in order."""
    yield from embeddings(config, norm=plus_one)
    for layer in range(config["num_hidden_layers"]):
        yield from norms(layer, NORMS, config["hidden_size"], plus_one)
        yield from attention(config, layer)
        yield from gated_mlp(config, layer)


ARCHITECTURE = Architecture(
    name="gemma2",
    hyperparameters=hyperparameters,
    tensors=tensors,
    defaults={
        **GEMMA_DEFAULTS,
        "max_position_embeddings": 8192,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    renames=RENAMES,
    ignored=IGNORED,
)
