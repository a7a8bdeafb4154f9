"""DistilBertModel as llama.cpp's `bert`: no token types.

Its classification head has a ReLU where llama.cpp has tanh, so it is refused. Checked against llama.cpp's
`conversion/bert.py` and `src/models/bert.cpp`, and by comparing embeddings.
"""

from collections.abc import Iterator
from dataclasses import replace

from edgeft.errors import ModelError
from edgeft.export.gguf.architectures import bert
from edgeft.export.gguf.architectures._encoder import GELU, classifies, encoder_metadata, linear, norm
from edgeft.export.gguf.architectures._settings import changed, require
from edgeft.export.gguf.architectures.base import Config, Metadata, TensorRule

OTHER_NAMES = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
}


def hyperparameters(config: Config) -> Metadata:
    """The `bert.…` keys. Raises ModelError for settings that llama.cpp's graph does not have."""
    require(config, "activation", *GELU)
    if classifies(config):
        raise ModelError(
            "config.json: DistilBertForSequenceClassification: llama.cpp's heads have tanh between their two "
            "layers, this one ReLU; export the model to ONNX, or fine-tune BERT or ModernBERT instead"
        )
    return encoder_metadata(changed(config, {usual: config[name] for usual, name in OTHER_NAMES.items()}))


def tensors(config: Config) -> Iterator[TensorRule]:
    """Every tensor of the file, in order."""
    width, inner, n_positions = config["dim"], config["hidden_dim"], config["max_position_embeddings"]
    yield TensorRule("token_embd.weight", ("embeddings.word_embeddings.weight",), (config["vocab_size"], width))
    yield from norm("token_embd_norm", "embeddings.LayerNorm", width)
    yield TensorRule("position_embd.weight", ("embeddings.position_embeddings.weight",), (n_positions, width))
    for layer in range(config["n_layers"]):
        ours, theirs = f"blk.{layer}", f"transformer.layer.{layer}"
        yield from linear(f"{ours}.attn_q", f"{theirs}.attention.q_lin", (width, width))
        yield from linear(f"{ours}.attn_k", f"{theirs}.attention.k_lin", (width, width))
        yield from linear(f"{ours}.attn_v", f"{theirs}.attention.v_lin", (width, width))
        yield from linear(f"{ours}.attn_output", f"{theirs}.attention.out_lin", (width, width))
        yield from norm(f"{ours}.attn_output_norm", f"{theirs}.sa_layer_norm", width)
        yield from linear(f"{ours}.ffn_up", f"{theirs}.ffn.lin1", (inner, width))
        yield from linear(f"{ours}.ffn_down", f"{theirs}.ffn.lin2", (width, inner))
        yield from norm(f"{ours}.layer_output_norm", f"{theirs}.output_layer_norm", width)


ARCHITECTURE = replace(
    bert.ARCHITECTURE,
    hyperparameters=hyperparameters,
    tensors=tensors,
    defaults={"activation": "gelu", "layer_norm_eps": 1e-12},
    renames=((r"^distilbert\.", ""),),
    ignored=("embeddings.position_ids", "vocab_*"),
)
