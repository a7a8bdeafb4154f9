"""LlamaForCausalLM (Llama 2 and 3, SmolLM2) as llama.cpp's `llama`.

Checked against llama.cpp's `conversion/llama.py` and `src/models/llama.cpp`, and by comparing logits.
"""

from collections.abc import Iterator

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
from edgeft.export.gguf.architectures._rope import SCALINGS, interleaved, llama3_factors, rope_metadata
from edgeft.export.gguf.architectures._settings import require
from edgeft.export.gguf.architectures.base import Architecture, Config, Metadata, TensorRule

NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def hyperparameters(config: Config) -> Metadata:
    """The `llama.…` keys. Raises ModelError for settings that llama.cpp's graph does not have."""
    require(config, "hidden_act", "silu")
    return decoder_metadata(config) | rope_metadata(config, sizes_of(config).head_dim, (*SCALINGS, "llama3"))


def tensors(config: Config) -> Iterator[TensorRule]:
    """Every tensor of the file, in order."""
    yield from embeddings(config)
    yield from llama3_factors(config, sizes_of(config).head_dim)
    attention_bias, mlp_bias = config["attention_bias"], config["mlp_bias"]
    for layer in range(config["num_hidden_layers"]):
        yield from norms(layer, NORMS, config["hidden_size"])
        yield from attention(config, layer, qkv_bias=attention_bias, output_bias=attention_bias, rotary=interleaved)
        yield from gated_mlp(config, layer, bias=mlp_bias)


ARCHITECTURE = Architecture(
    name="llama",
    hyperparameters=hyperparameters,
    tensors=tensors,
    defaults=DEFAULTS,
    renames=RENAMES,
    ignored=IGNORED,
)
