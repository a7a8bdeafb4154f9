"""MistralForCausalLM as llama.cpp's `llama`, which has no sliding window: the context ends where it begins to
matter.

Checked against llama.cpp's `conversion/llama.py` and `src/models/llama.cpp`, and by comparing logits.
"""

from dataclasses import replace

from edgeft.export.gguf.architectures import llama
from edgeft.export.gguf.architectures._settings import context_within
from edgeft.export.gguf.architectures.base import Config, Metadata


def hyperparameters(config: Config) -> Metadata:
    """The `llama.…` keys. Raises ModelError for settings that llama.cpp's graph does not have."""
    context = context_within(config, config["sliding_window"])
    return llama.hyperparameters(config) | {"context_length": context}


ARCHITECTURE = replace(
    llama.ARCHITECTURE,
    hyperparameters=hyperparameters,
    defaults={**llama.ARCHITECTURE.defaults, "num_key_value_heads": 8, "sliding_window": 4096},
)
