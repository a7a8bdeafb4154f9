"""BitNetForCausalLM whose ternary weights are stored dequantized, as llama.cpp's `bitnet`.

Two norms more than Llama, inside attention and feed-forward; the head is always tied. Checked against llama.cpp's
`conversion/bitnet.py` and `src/models/bitnet.cpp`, and by comparing logits. The reference converter makes the
weights ternary once more; here they are taken as they are, so that the file is the model of the folder.
"""

from collections.abc import Iterator
from dataclasses import replace

from edgeft.export.gguf.architectures import llama
from edgeft.export.gguf.architectures._decoder import (
    DEFAULTS,
    attention,
    decoder_metadata,
    embeddings,
    gated_mlp,
    norms,
    sizes_of,
)
from edgeft.export.gguf.architectures._rope import rope_metadata
from edgeft.export.gguf.architectures._settings import require
from edgeft.export.gguf.architectures.base import Config, Metadata, TensorRule

NORMS = {**llama.NORMS, "attn_sub_norm": "self_attn.attn_sub_norm"}
INNER_NORMS = {"ffn_sub_norm": "mlp.ffn_sub_norm"}


def hyperparameters(config: Config) -> Metadata:
    """The `bitnet.…` keys. Raises ModelError for settings that llama.cpp's graph does not have."""
    require(config, "hidden_act", "silu")
    require(config, "attention_bias", False)
    require(config, "tie_word_embeddings", True)
    return decoder_metadata(config) | rope_metadata(config, sizes_of(config).head_dim, ("default",))


def tensors(config: Config) -> Iterator[TensorRule]:
    """Every tensor of the file, in order."""
    yield from embeddings(config)
    for layer in range(config["num_hidden_layers"]):
        yield from norms(layer, NORMS, config["hidden_size"])
        yield from norms(layer, INNER_NORMS, config["intermediate_size"])
        yield from attention(config, layer)
        yield from gated_mlp(config, layer)


ARCHITECTURE = replace(
    llama.ARCHITECTURE,
    name="bitnet",
    hyperparameters=hyperparameters,
    tensors=tensors,
    defaults={**DEFAULTS, "hidden_act": "relu2"},
)
