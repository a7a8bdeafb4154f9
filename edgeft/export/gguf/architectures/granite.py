"""GraniteForCausalLM as llama.cpp's `granite`: Llama with multipliers on embedding, attention, residual and logits.

Checked against llama.cpp's `conversion/granite.py` and `src/models/granite.cpp`, and by comparing logits.
"""

from dataclasses import replace

from edgeft.errors import ModelError
from edgeft.export.gguf.architectures import llama
from edgeft.export.gguf.architectures.base import Config, Metadata

SCALES = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}


def hyperparameters(config: Config) -> Metadata:
    """The `granite.…` keys. Raises ModelError for settings that llama.cpp's graph does not have."""
    metadata = llama.hyperparameters(config)
    for ours, theirs in SCALES.items():
        if not config[theirs]:
            raise ModelError(f"config.json: {theirs} {config[theirs]!r}: llama.cpp takes zero as if it were not set")
        metadata[ours] = float(config[theirs])
    return metadata


ARCHITECTURE = replace(
    llama.ARCHITECTURE,
    name="granite",
    hyperparameters=hyperparameters,
    defaults={**llama.ARCHITECTURE.defaults, **dict.fromkeys(SCALES.values(), 1.0)},
)
