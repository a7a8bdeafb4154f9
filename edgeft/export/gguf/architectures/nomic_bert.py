"""NomicBertModel (nomic-embed-text v1 and v1.5) as llama.cpp's `nomic-bert`: BERT with rotary positions and a gated
feed-forward layer. The mixture of experts of v2 is refused.

Checked against llama.cpp's `conversion/bert.py` and `src/models/nomic-bert.cpp`, and by comparing embeddings.
"""

from collections.abc import Iterator
from dataclasses import replace

from edgeft.errors import ModelError
from edgeft.export.gguf.architectures import bert
from edgeft.export.gguf.architectures._encoder import IGNORED, classifies, encoder_metadata, linear, norm
from edgeft.export.gguf.architectures._rope import rope_metadata
from edgeft.export.gguf.architectures._settings import changed, require
from edgeft.export.gguf.architectures.base import Config, Metadata, TensorRule

OLDER_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
    "layer_norm_eps": "layer_norm_epsilon",
    "rope_theta": "rotary_emb_base",
}
"""How config.json calls them where the model comes with code of its own."""

OLDER_SETTINGS = {
    "activation_function": "swiglu",
    "causal": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
}
"""What that code could do besides, and llama.cpp cannot."""


def hyperparameters(config: Config) -> Metadata:
    """The `nomic-bert.…` keys. Raises ModelError for settings that llama.cpp's graph does not have."""
    config = _today(config)
    require(config, "hidden_act", "silu")
    for key, value in OLDER_SETTINGS.items():
        if key in config:
            require(config, key, value)
    if config.get("moe_every_n_layers"):
        raise ModelError("config.json: moe_every_n_layers: nomic-bert with experts cannot be exported to GGUF")
    if classifies(config):
        raise ModelError("config.json: llama.cpp's graph for nomic_bert has no classification head")
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    return encoder_metadata(config) | rope_metadata(config, head_dim, ("default",))


def tensors(config: Config) -> Iterator[TensorRule]:
    """Every tensor of the file, in order."""
    config = _today(config)
    width, inner = config["hidden_size"], config["intermediate_size"]
    yield from bert.embeddings(config)
    for layer in range(config["num_hidden_layers"]):
        ours, theirs = f"blk.{layer}", f"encoder.layers.{layer}"
        yield from linear(f"{ours}.attn_qkv", f"{theirs}.attn.Wqkv", (3 * width, width), bias=False)
        yield from linear(f"{ours}.attn_output", f"{theirs}.attn.out_proj", (width, width), bias=False)
        yield from norm(f"{ours}.attn_output_norm", f"{theirs}.norm1", width)
        yield from linear(f"{ours}.ffn_up", f"{theirs}.mlp.fc11", (inner, width), bias=False)
        yield from linear(f"{ours}.ffn_gate", f"{theirs}.mlp.fc12", (inner, width), bias=False)
        yield from linear(f"{ours}.ffn_down", f"{theirs}.mlp.fc2", (width, inner), bias=False)
        yield from norm(f"{ours}.layer_output_norm", f"{theirs}.norm2", width)


def _today(config: Config) -> Config:
    """`config` under the names that transformers has for it today."""
    return changed(config, {usual: config[older] for usual, older in OLDER_NAMES.items() if older in config})


ARCHITECTURE = replace(
    bert.ARCHITECTURE,
    name="nomic-bert",
    hyperparameters=hyperparameters,
    tensors=tensors,
    defaults={"hidden_act": "silu", "type_vocab_size": 2, "layer_norm_eps": 1e-12, "rope_theta": 1000.0},
    renames=((r"^(nomic_)?bert\.", ""), (r"^emb_ln\.", "embeddings.LayerNorm.")),
    ignored=IGNORED,
)
