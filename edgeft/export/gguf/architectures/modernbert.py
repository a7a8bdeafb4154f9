"""ModernBertModel and ModernBertForSequenceClassification as llama.cpp's `modern-bert`: rotary positions, two
layers of three with a window around each token.

Checked against llama.cpp's `conversion/bert.py` and `src/models/modern-bert.cpp`, and by comparing embeddings and
class scores.
"""

from collections.abc import Iterator

from edgeft.export.gguf.architectures._encoder import classifier, classifies, encoder_metadata, linear, norm
from edgeft.export.gguf.architectures._pooling import MODES, pooling_metadata
from edgeft.export.gguf.architectures._rope import require_unscaled
from edgeft.export.gguf.architectures._settings import changed, require
from edgeft.export.gguf.architectures._sliding import sliding_metadata
from edgeft.export.gguf.architectures.base import Architecture, Config, Metadata, TensorRule

BIASES = ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias")
THETAS = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}
"""Kinds of layers, and where older files have their rotation's base."""


def hyperparameters(config: Config) -> Metadata:
    """The `modern-bert.…` keys. Raises ModelError for settings that llama.cpp's graph does not have."""
    require(config, "hidden_activation", "gelu", "silu")
    for bias in BIASES:
        require(config, bias, False)
    metadata = encoder_metadata(changed(config, {"layer_norm_eps": config["norm_eps"]}))
    metadata |= sliding_metadata(config, config["local_attention"], every=3, dense_first=True)
    metadata |= {
        "hidden_activation": config["hidden_activation"],
        "rope.scaling.type": "none",
        "rope.freq_base": require_unscaled(config, "full_attention", THETAS["full_attention"]),
        "rope.freq_base_swa": require_unscaled(config, "sliding_attention", THETAS["sliding_attention"]),
    }
    if classifies(config):
        require(config, "classifier_activation", "gelu")
        metadata["classifier.pooling_type"] = MODES[config["classifier_pooling"]]
    return metadata


def tensors(config: Config) -> Iterator[TensorRule]:
    """Every tensor of the file, in order. The first layer has no norm before its attention."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    n_vocab = config["vocab_size"]
    yield TensorRule("token_embd.weight", ("embeddings.tok_embeddings.weight",), (n_vocab, width))
    yield from norm("token_embd_norm", "embeddings.norm", width, bias=False)
    yield from norm("output_norm", "final_norm", width, bias=False)
    if classifies(config):
        yield from linear("cls", "head.dense", (width, width), bias=False)
        yield from norm("cls.norm", "head.norm", width, bias=False)
        yield from classifier(config, "classifier")
    for layer in range(config["num_hidden_layers"]):
        ours, theirs = f"blk.{layer}", f"layers.{layer}"
        if layer > 0:
            yield from norm(f"{ours}.attn_norm", f"{theirs}.attn_norm", width, bias=False)
        yield from linear(f"{ours}.attn_qkv", f"{theirs}.attn.Wqkv", (3 * width, width), bias=False)
        yield from linear(f"{ours}.attn_output", f"{theirs}.attn.Wo", (width, width), bias=False)
        yield from norm(f"{ours}.ffn_norm", f"{theirs}.mlp_norm", width, bias=False)
        yield from linear(f"{ours}.ffn_up", f"{theirs}.mlp.Wi", (2 * inner, width), bias=False)
        yield from linear(f"{ours}.ffn_down", f"{theirs}.mlp.Wo", (width, inner), bias=False)


ARCHITECTURE = Architecture(
    name="modern-bert",
    hyperparameters=hyperparameters,
    tensors=tensors,
    defaults={
        **dict.fromkeys(BIASES, False),
        "hidden_activation": "gelu",
        "norm_eps": 1e-5,
        "local_attention": 128,
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
        "classifier_activation": "gelu",
        "classifier_pooling": "cls",
    },
    renames=((r"^model\.", ""),),
    ignored=("head.*", "decoder.*"),
    other_files=pooling_metadata,
)
