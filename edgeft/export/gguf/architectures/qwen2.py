"""Qwen2ForCausalLM (Qwen 2 and 2.5) as llama.cpp's `qwen2`: biases on q, k and v.

Checked against llama.cpp's `conversion/qwen.py` and `src/models/qwen2.cpp`, and by comparing logits.
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
from edgeft.export.gguf.architectures._pooling import pooling_metadata
from edgeft.export.gguf.architectures._rope import rope_metadata
from edgeft.export.gguf.architectures._settings import context_within, require
from edgeft.export.gguf.architectures.base import Architecture, Config, Metadata, TensorRule
from edgeft.export.gguf.architectures.llama import NORMS

QWEN_DEFAULTS = {**DEFAULTS, "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}


def hyperparameters(config: Config) -> Metadata:
    """The `qwen2.…` keys. Raises ModelError for settings that llama.cpp's graph does not have."""
    require(config, "hidden_act", "silu")
    context = context_within(config, window(config))
    return decoder_metadata(config) | rope_metadata(config, sizes_of(config).head_dim) | {"context_length": context}


def window(config: Config) -> int | None:
    """The sliding window of the upper layers, in tokens; None where every layer sees everything."""
    if not config["use_sliding_window"]:
        return None
    slides: bool = config["max_window_layers"] < config["num_hidden_layers"]
    if config.get("layer_types"):
        slides = "sliding_attention" in config["layer_types"]
    return config["sliding_window"] if slides else None


def tensors(config: Config) -> Iterator[TensorRule]:
    """Every tensor of the file, in order."""
    yield from embeddings(config)
    for layer in range(config["num_hidden_layers"]):
        yield from norms(layer, NORMS, config["hidden_size"])
        yield from attention(config, layer, qkv_bias=True)
        yield from gated_mlp(config, layer)


ARCHITECTURE = Architecture(
    name="qwen2",
    hyperparameters=hyperparameters,
    tensors=tensors,
    defaults={**QWEN_DEFAULTS, "num_key_value_heads": 32},
    renames=RENAMES,
    ignored=IGNORED,
    other_files=pooling_metadata,
)
