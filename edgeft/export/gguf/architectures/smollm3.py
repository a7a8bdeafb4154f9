"""SmolLM3ForCausalLM as llama.cpp's `smollm3`: every fourth layer has no positions.

Checked against llama.cpp's `conversion/llama.py` and `src/models/smollm3.cpp`, and by comparing logits.
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
    sizes_of,
)
from edgeft.export.gguf.architectures._rope import interleaved, rope_metadata
from edgeft.export.gguf.architectures._settings import require
from edgeft.export.gguf.architectures.base import Architecture, Config, Metadata, TensorRule
from edgeft.export.gguf.architectures.llama import NORMS

INTERVAL = 4
"""llama.cpp's graph leaves out the rotation in layers 3, 7, 11, …; no key says otherwise."""


def hyperparameters(config: Config) -> Metadata:
    """The `smollm3.…` keys. Raises ModelError for settings that llama.cpp's graph does not have."""
    for key, value in (("hidden_act", "silu"), ("use_sliding_window", False), ("attention_bias", False)):
        require(config, key, value)
    require(config, "mlp_bias", False)
    interval, n_layers = config["no_rope_layer_interval"], config["num_hidden_layers"]
    rotated = config["no_rope_layers"] or [(layer + 1) % interval != 0 for layer in range(n_layers)]
    if [bool(flag) for flag in rotated] != [(layer + 1) % INTERVAL != 0 for layer in range(n_layers)]:
        raise ModelError(
            f"config.json: no_rope_layers {rotated}: llama.cpp's graph for smollm3 leaves out the rotation in "
            f"every layer whose number, counted from 1, divides by {INTERVAL}"
        )
    return decoder_metadata(config) | rope_metadata(config, sizes_of(config).head_dim)


def tensors(config: Config) -> Iterator[TensorRule]:
    """Every tensor of the file, in order."""
    yield from embeddings(config)
    for layer in range(config["num_hidden_layers"]):
        yield from norms(layer, NORMS, config["hidden_size"])
        yield from attention(config, layer, rotary=interleaved)
        yield from gated_mlp(config, layer)


ARCHITECTURE = Architecture(
    name="smollm3",
    hyperparameters=hyperparameters,
    tensors=tensors,
    defaults={
        **DEFAULTS,
        "num_key_value_heads": 4,
        "rope_theta": 2000000.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
    },
    renames=RENAMES,
    ignored=IGNORED,
)
