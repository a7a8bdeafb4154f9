"""Phi3ForCausalLM (Phi-3, Phi-4-mini) as llama.cpp's `phi3`: q, k, v in one matrix, gate and up in another.

llama.cpp has switched Phi's sliding window off, so the context ends where it begins to matter. It takes LongRoPE's
long factors for any context beyond the original one; transformers takes them for a text beyond it. Checked
against llama.cpp's `conversion/phi.py` and `src/models/phi3.cpp`, and by comparing logits.
"""

from collections.abc import Iterator

from edgeft.errors import ModelError
from edgeft.export.gguf.architectures._decoder import (
    DEFAULTS,
    IGNORED,
    RENAMES,
    decoder_metadata,
    embeddings,
    linear,
    norms,
    sizes_of,
)
from edgeft.export.gguf.architectures._rope import longrope_factors, rope_metadata
from edgeft.export.gguf.architectures._settings import context_within, require
from edgeft.export.gguf.architectures.base import Architecture, Config, Metadata, TensorRule
from edgeft.export.gguf.architectures.llama import NORMS


def hyperparameters(config: Config) -> Metadata:
    """The `phi3.…` keys. Raises ModelError for settings that llama.cpp's graph does not have."""
    require(config, "hidden_act", "silu")
    sizes = sizes_of(config)
    if sizes.q_width != sizes.width:
        raise ModelError(
            f"config.json: head_dim {sizes.head_dim}: llama.cpp's graph for phi3 has only hidden_size / heads"
        )
    rope = rope_metadata(config, sizes.head_dim, ("default", "longrope"))
    context = context_within(config, config["sliding_window"])
    return decoder_metadata(config) | rope | {"context_length": context}


def tensors(config: Config) -> Iterator[TensorRule]:
    """Every tensor of the file, in order."""
    sizes = sizes_of(config)
    yield from embeddings(config)
    yield from longrope_factors(config, sizes.head_dim)
    for layer in range(sizes.n_layers):
        yield from norms(layer, NORMS, sizes.width)
        qkv = sizes.q_width + 2 * sizes.kv_width
        yield from linear(layer, "attn_qkv", "self_attn.qkv_proj", (qkv, sizes.width))
        yield from linear(layer, "attn_output", "self_attn.o_proj", (sizes.width, sizes.q_width))
        yield from linear(layer, "ffn_up", "mlp.gate_up_proj", (2 * sizes.inner, sizes.width))
        yield from linear(layer, "ffn_down", "mlp.down_proj", (sizes.width, sizes.inner))


ARCHITECTURE = Architecture(
    name="phi3",
    hyperparameters=hyperparameters,
    tensors=tensors,
    defaults={**DEFAULTS, "original_max_position_embeddings": 4096, "sliding_window": None},
    renames=RENAMES,
    ignored=IGNORED,
)
