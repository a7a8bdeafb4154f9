"""Gemma3ForCausalLM as llama.cpp's `gemma3`: norms on the heads, five layers of six sliding, with a
rotation of their own.

Checked against llama.cpp's `conversion/gemma.py` and `src/models/gemma3.cpp`, and by comparing logits.
"""

from collections.abc import Iterator
from dataclasses import replace

from edgeft.errors import ModelError
from edgeft.export.gguf.architectures import gemma2
from edgeft.export.gguf.architectures._decoder import attention, embeddings, gated_mlp, norms, plus_one
from edgeft.export.gguf.architectures._rope import require_unscaled
from edgeft.export.gguf.architectures._settings import require
from edgeft.export.gguf.architectures._sliding import sliding_metadata
from edgeft.export.gguf.architectures.base import Config, Metadata, TensorRule
from edgeft.export.gguf.architectures.qwen3 import HEAD_NORMS

LOCAL_THETA = "rope_local_base_freq"
"""Where older files have the base of the sliding layers' rotation."""


def hyperparameters(config: Config) -> Metadata:
    """The `gemma3.…` keys. Raises ModelError for settings that llama.cpp's graph does not have."""
    require(config, "attn_logit_softcapping", None)
    metadata = gemma2.gemma_metadata(config) | sliding_metadata(config, config["sliding_window"], every=6)
    if config["final_logit_softcapping"]:
        metadata["final_logit_softcapping"] = float(config["final_logit_softcapping"])
    if "attention.sliding_window" in metadata:
        metadata["rope.freq_base_swa"] = require_unscaled(config, "sliding_attention", LOCAL_THETA)
        if metadata.get("rope.scaling.type") == "yarn":
            raise ModelError("config.json: rope_type 'yarn': llama.cpp would scale attention in sliding layers too")
    return metadata


def tensors(config: Config) -> Iterator[TensorRule]:
    """Every tensor of the file, in order."""
    yield from embeddings(config, norm=plus_one)
    for layer in range(config["num_hidden_layers"]):
        yield from norms(layer, gemma2.NORMS, config["hidden_size"], plus_one)
        yield from attention(config, layer)
        yield from norms(layer, HEAD_NORMS, config["head_dim"], plus_one)
        yield from gated_mlp(config, layer)


ARCHITECTURE = replace(
    gemma2.ARCHITECTURE,
    name="gemma3",
    hyperparameters=hyperparameters,
    tensors=tensors,
    defaults={
        **gemma2.GEMMA_DEFAULTS,
        "max_position_embeddings": 131072,
        "vocab_size": 262208,
        "attn_logit_softcapping": None,
        "use_bidirectional_attention": False,
        "final_logit_softcapping": None,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
    },
)
