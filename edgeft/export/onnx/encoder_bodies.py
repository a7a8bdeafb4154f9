"""The encoders themselves, from token ids to the last hidden state (B, S, D): one function a `model_type`.

Names of tensors are transformers' (`models/<model_type>/modeling_<model_type>.py`), without the prefix that models
with a head have. BERT and its kin put the norm behind each block, ModernBERT before it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto

from edgeft.errors import ModelError
from edgeft.export.gguf.architectures import bert, distilbert, modernbert, roberta
from edgeft.export.gguf.architectures._rope import rope_parameters
from edgeft.export.gguf.architectures.base import Architecture, Config
from edgeft.export.onnx.encoder_graph import BATCH, FAR, SEQUENCE, TYPES, EncoderGraph
from edgeft.export.onnx.encoder_products import Product
from edgeft.export.onnx.rope import rope_of


@dataclass(frozen=True)
class Body:
    """How one `model_type` is built. `sizes` are other names that its config.json has for BERT's keys;
    `skips_positions`: no token has the positions up to pad_token_id."""

    build: Callable[[EncoderGraph], str]
    known: Architecture
    sizes: dict[str, str] = field(default_factory=dict)
    skips_positions: bool = False

    def config(self, config: Config) -> Config:
        """config.json with BERT's keys and with what it leaves out."""
        filled = type(config)(config)
        for key, value in self.known.defaults.items():
            filled.setdefault(key, value)
        for usual, name in self.sizes.items():
            filled[usual] = filled[name]
        return filled


def _bert(graph: EncoderGraph) -> str:
    config = graph.config
    kinds = graph.graph.input(TYPES, TensorProto.INT64, [BATCH, SEQUENCE])
    words = graph.embed(graph.ids, "embeddings.word_embeddings", config["vocab_size"])
    types = graph.embed(kinds, "embeddings.token_type_embeddings", config["type_vocab_size"], rounded=False)
    both = graph.graph.node("Add", [words, types], "embeddings.words_and_types")
    rows = graph.embed(graph.first_places(), "embeddings.position_embeddings", config["max_position_embeddings"])
    x, _ = graph.skip_norm(Product(both), rows, "embeddings.LayerNorm", config["layer_norm_eps"])
    return _layers(graph, x, _bert_names)


def _roberta(graph: EncoderGraph) -> str:
    """Positions count the tokens that are no padding, from pad_token_id + 1; there is one token type."""
    config = graph.config
    width, pad = config["hidden_size"], config["pad_token_id"]
    words = graph.embed(graph.ids, "embeddings.word_embeddings", config["vocab_size"])
    name = "embeddings.position_embeddings.weight"
    table = graph.tensor(name, config["max_position_embeddings"], width)
    table = table + graph.tensor("embeddings.token_type_embeddings.weight", config["type_vocab_size"], width)[0]
    padding = graph.graph.node("Equal", [graph.ids, graph.whole("pad", pad)], "padding")
    token = graph.graph.node("Cast", [graph.graph.node("Not", [padding], "real")], "token", to=TensorProto.INT64)
    counted = graph.graph.node("CumSum", [token, graph.whole("one", 1)], "counted")
    places = graph.graph.node("Mul", [counted, token], "counted.real")
    places = graph.graph.node("Add", [places, graph.whole("pad", pad)], "places")
    rows = graph.products.look_up(graph.graph, name, places, table)
    x, _ = graph.skip_norm(Product(words), rows, "embeddings.LayerNorm", config["layer_norm_eps"])
    return _layers(graph, x, _bert_names)


def _distilbert(graph: EncoderGraph) -> str:
    config = graph.config
    words = graph.embed(graph.ids, "embeddings.word_embeddings", config["vocab_size"])
    rows = graph.embed(graph.first_places(), "embeddings.position_embeddings", config["max_position_embeddings"])
    x, _ = graph.skip_norm(Product(words), rows, "embeddings.LayerNorm", config["layer_norm_eps"])
    return _layers(graph, x, _distilbert_names)


@dataclass(frozen=True)
class _Names:
    """Modules of one layer."""

    attention: str
    queries: str
    keys: str
    values: str
    output: str
    attention_norm: str
    up: str
    down: str
    norm: str


def _bert_names(layer: int) -> _Names:
    at = f"encoder.layer.{layer}"
    inside = f"{at}.attention.self"
    projections = (f"{inside}.query", f"{inside}.key", f"{inside}.value")
    behind = (f"{at}.attention.output.dense", f"{at}.attention.output.LayerNorm")
    return _Names(inside, *projections, *behind, f"{at}.intermediate.dense", f"{at}.output.dense",
                  f"{at}.output.LayerNorm")  # fmt: skip


def _distilbert_names(layer: int) -> _Names:
    at = f"transformer.layer.{layer}"
    inside = f"{at}.attention"
    projections = (f"{inside}.q_lin", f"{inside}.k_lin", f"{inside}.v_lin")
    return _Names(inside, *projections, f"{inside}.out_lin", f"{at}.sa_layer_norm", f"{at}.ffn.lin1",
                  f"{at}.ffn.lin2", f"{at}.output_layer_norm")  # fmt: skip


def _layers(graph: EncoderGraph, x: str, names_of: Callable[[int], _Names]) -> str:
    """Layers with the norm behind each block."""
    config = graph.config
    width, inner, epsilon = config["hidden_size"], config["intermediate_size"], config["layer_norm_eps"]
    for layer in range(config["num_hidden_layers"]):
        names = names_of(layer)
        heads = [names.queries, names.keys, names.values]
        product = graph.multiply(x, f"{names.attention}.qkv", heads, (width, width))
        parts = graph.split(product.value, 3, names.attention)
        seen = graph.attend(parts, product.bias, names.attention)
        x, _ = graph.skip_norm(graph.linear(seen, names.output, (width, width)), x, names.attention_norm, epsilon)
        up = graph.activate(graph.linear(x, names.up, (inner, width)), config["hidden_act"], f"{names.up}.activation")
        x, _ = graph.skip_norm(graph.linear(up, names.down, (width, inner)), x, names.norm, epsilon)
    return x


def _modernbert(graph: EncoderGraph) -> str:
    config = graph.config
    width, inner, epsilon = config["hidden_size"], config["intermediate_size"], config["norm_eps"]
    words = graph.embed(graph.ids, "embeddings.tok_embeddings", config["vocab_size"])
    total = x = graph.norm(words, "embeddings.norm", epsilon)
    kinds = _layer_types(config)
    tables = {kind: _rotation(graph, kind) for kind in sorted(set(kinds))}
    window = _window(graph) if "sliding_attention" in kinds else ""
    for layer, kind in enumerate(kinds):
        at = f"layers.{layer}"
        product = graph.linear(x, f"{at}.attn.Wqkv", (3 * width, width))
        queries, keys, values = graph.split(graph.added(product, f"{at}.attn.Wqkv"), 3, f"{at}.attn")
        queries = graph.rotate(queries, tables[kind], f"{at}.attn.query")
        keys = graph.rotate(keys, tables[kind], f"{at}.attn.key")
        bias = window if kind == "sliding_attention" else ""
        seen = graph.attend([queries, keys, values], "", f"{at}.attn", score_bias=bias)
        product = graph.linear(seen, f"{at}.attn.Wo", (width, width))
        x, total = graph.skip_norm(product, total, f"{at}.mlp_norm", epsilon)
        product = graph.linear(x, f"{at}.mlp.Wi", (2 * inner, width))
        kept, gate = graph.split(graph.added(product, f"{at}.mlp.Wi"), 2, f"{at}.mlp")
        kept = graph.activate(Product(kept), config["hidden_activation"], f"{at}.mlp.act")
        product = graph.linear(graph.graph.node("Mul", [kept, gate], f"{at}.mlp.gated"), f"{at}.mlp.Wo", (width, inner))
        behind = "final_norm" if layer == len(kinds) - 1 else f"layers.{layer + 1}.attn_norm"
        x, total = graph.skip_norm(product, total, behind, epsilon)
    return x


def _layer_types(config: Config) -> list[str]:
    if config.get("layer_types"):
        return list(config["layer_types"])
    every = config.get("global_attn_every_n_layers", 3)
    return ["sliding_attention" if layer % every else "full_attention" for layer in range(config["num_hidden_layers"])]


def _rotation(graph: EncoderGraph, kind: str) -> tuple[str, str]:
    config = graph.config
    parameters = rope_parameters(config, kind, modernbert.THETAS[kind])
    rope = rope_of(config, parameters, config["hidden_size"] // config["num_attention_heads"])
    if rope.long_frequencies is not None:
        raise ModelError("config.json: rope_parameters: LongRoPE cannot be exported to ONNX for encoders")
    return graph.rotations(kind, rope.frequencies, rope.amplitude)


def _window(graph: EncoderGraph) -> str:
    """(1, 1, S, S): 0 where two tokens are at most half of `local_attention` apart, else FAR."""
    node, positions = graph.graph.node, graph.positions()
    column = node("Unsqueeze", [positions, graph.whole("axis_1", [1])], "window.column")
    apart = node("Abs", [node("Sub", [column, positions], "window.difference")], "window.distance")
    half = graph.whole("window.half", graph.config["local_attention"] // 2)
    far = node("Greater", [apart, half], "window.far")
    bias = node(
        "Where",
        [far, graph.floats("far", np.array(FAR)), graph.floats("near", np.array(0.0))],
        "window.bias",
    )
    return node("Unsqueeze", [bias, graph.whole("axes_0_1", [0, 1])], "window")


DISTILBERT_SIZES = {**distilbert.OTHER_NAMES, "hidden_act": "activation"}
BODIES = {
    "bert": Body(_bert, bert.ARCHITECTURE),
    "roberta": Body(_roberta, roberta.ARCHITECTURE, skips_positions=True),
    "xlm-roberta": Body(_roberta, roberta.ARCHITECTURE, skips_positions=True),
    "distilbert": Body(_distilbert, distilbert.ARCHITECTURE, DISTILBERT_SIZES),
    "modernbert": Body(_modernbert, modernbert.ARCHITECTURE),
}
