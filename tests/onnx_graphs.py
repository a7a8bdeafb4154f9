"""ONNX decoders written by hand, node for node, from a tiny Llama folder: what the runtime is tried on.

`shared`: GroupQueryAttention, which extends the keys and values where they lie. `plain`: the standard operators
RotaryEmbedding and Attention (opset 23), which append to a copy.
"""

import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

COPIED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
OPSETS = {"shared": 21, "plain": 23}


def write_decoder(
    folder: Path,
    out: Path,
    kind: Literal["shared", "plain"] = "shared",
    *,
    half: bool = False,
    last_only: bool = False,
    data_file: str | None = None,
) -> Path:
    """Write `model.onnx` of the Llama in `folder`, with its tokenizer and configuration, to the new folder `out`.

    `half` computes in float16; `last_only` gives the last token's logits only; `data_file` puts the weights there.
    """
    from transformers import AutoModelForCausalLM

    out.mkdir(parents=True)
    for name in COPIED:
        if (folder / name).exists():
            shutil.copy(folder / name, out / name)
    graph = _Graph(AutoModelForCausalLM.from_pretrained(folder), kind, half, last_only)
    model = helper.make_model(
        helper.make_graph(graph.nodes, "decoder", graph.inputs, graph.outputs, graph.weights),
        opset_imports=[helper.make_opsetid("", OPSETS[kind]), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
    onnx.save(model, out / "model.onnx", save_as_external_data=data_file is not None, location=data_file)
    return out


class _Graph:
    def __init__(self, model: Any, kind: str, half: bool, last_only: bool) -> None:
        self.config, self.kind = model.config, kind
        self.numpy_type = np.float16 if half else np.float32
        self.type = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        self.state = {name: value.numpy() for name, value in model.state_dict().items()}
        self.nodes: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.weights: list[Any] = []
        self._build(model, last_only)

    def _build(self, model: Any, last_only: bool) -> None:
        for name, length in (("input_ids", "tokens"), ("attention_mask", "total"), ("position_ids", "tokens")):
            self.inputs.append(helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", length]))
        self._rotations(model.model.rotary_emb)
        self._mask()
        states = self.node("Gather", [self.weight("model.embed_tokens.weight", self.of("embed_tokens")), "input_ids"])
        for layer in range(self.config.num_hidden_layers):
            states = self._layer(layer, states)
        if last_only:
            ends = [self.constant([value]) for value in (-1, 2**31, 1)]
            states = self.node("Slice", [states, *ends])
        states = self._norm("norm", states)
        head = self.weight("lm_head", self.state["lm_head.weight"].T)
        self.nodes.append(helper.make_node("MatMul", [states, head], ["logits"]))
        rows = 1 if last_only else "tokens"
        shape = ["batch", rows, self.config.vocab_size]
        self.outputs.insert(0, helper.make_tensor_value_info("logits", self.type, shape))

    def _layer(self, layer: int, states: str) -> str:
        name = f"layers.{layer}"
        normed = self._norm(f"{name}.input_layernorm", states)
        q, k, v = (self._linear(f"{name}.self_attn.{part}_proj", normed) for part in "qkv")
        attention = self._shared if self.kind == "shared" else self._plain
        mixed = self._linear(f"{name}.self_attn.o_proj", attention(layer, q, k, v))
        states = self.node("Add", [states, mixed])
        normed = self._norm(f"{name}.post_attention_layernorm", states)
        gate = self._linear(f"{name}.mlp.gate_proj", normed)
        gated = self.node("Mul", [self.node("Mul", [gate, self.node("Sigmoid", [gate])]),
                                  self._linear(f"{name}.mlp.up_proj", normed)])  # fmt: skip
        return self.node("Add", [states, self._linear(f"{name}.mlp.down_proj", gated)])

    def _shared(self, layer: int, q: str, k: str, v: str) -> str:
        return self.node(
            "GroupQueryAttention",
            [q, k, v, *self._past(layer), "last", "total", "cos", "sin", "position_ids"],
            outputs=[f"mixed.{layer}", f"present.{layer}.key", f"present.{layer}.value"],
            domain="com.microsoft",
            num_heads=self.config.num_attention_heads,
            kv_num_heads=self.config.num_key_value_heads,
            do_rotary=1,
        )

    def _plain(self, layer: int, q: str, k: str, v: str) -> str:
        heads = {q: self.config.num_attention_heads, k: self.config.num_key_value_heads}
        turned = [
            self.node("RotaryEmbedding", [part, "cos", "sin", "position_ids"], num_heads=heads[part]) for part in (q, k)
        ]
        return self.node(
            "Attention",
            [*turned, v, "visible", *self._past(layer)],
            outputs=[f"mixed.{layer}", f"present.{layer}.key", f"present.{layer}.value"],
            q_num_heads=heads[q],
            kv_num_heads=heads[k],
        )

    def _past(self, layer: int) -> list[str]:
        names = []
        for part in ("key", "value"):
            shape = ["batch", self.config.num_key_value_heads, "{}", self.config.head_dim]
            names.append(f"past_key_values.{layer}.{part}")
            shapes = [[size if size != "{}" else length for size in shape] for length in ("past", "total")]
            self.inputs.append(helper.make_tensor_value_info(names[-1], self.type, shapes[0]))
            self.outputs.append(helper.make_tensor_value_info(f"present.{layer}.{part}", self.type, shapes[1]))
        return names

    def _rotations(self, module: Any) -> None:
        angles = np.outer(np.arange(self.config.max_position_embeddings), module.inv_freq.numpy())
        self.weight("cos", np.cos(angles))
        self.weight("sin", np.sin(angles))

    def _mask(self) -> None:
        """`last` and `total` for GroupQueryAttention; `visible` (batch, 1, tokens, total) for Attention."""
        one, int32 = self.constant([1]), TensorProto.INT32
        if self.kind == "shared":
            length = self.node("Sub", [self.node("ReduceSum", ["attention_mask", one], keepdims=0), one])
            self.node("Cast", [length], outputs=["last"], to=int32)
            width = self.node("Gather", [self.node("Shape", ["attention_mask"]), self.constant(1)])
            self.node("Cast", [width], outputs=["total"], to=int32)
            return
        width = self.node("Gather", [self.node("Shape", ["attention_mask"]), self.constant(1)])
        keys = self.node("Range", [self.constant(0), width, self.constant(1)])
        queries = self.node("Unsqueeze", ["position_ids", self.constant([1, 3])])
        self.node("LessOrEqual", [keys, queries], outputs=["visible"])

    def _norm(self, name: str, states: str) -> str:
        scale = self.weight(f"{name}.scale", self.of(name))
        op = "SimplifiedLayerNormalization"
        return self.node(op, [states, scale], axis=-1, epsilon=self.config.rms_norm_eps, stash_type=1)

    def _linear(self, name: str, states: str) -> str:
        product = self.node("MatMul", [states, self.weight(name, self.of(name).T)])
        bias = self.state.get(f"model.{name}.bias")
        return product if bias is None else self.node("Add", [product, self.weight(f"{name}.bias", bias)])

    def of(self, name: str) -> np.ndarray:
        return self.state[f"model.{name}.weight"]

    def weight(self, name: str, value: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value, self.numpy_type), name))
        return name

    def constant(self, value: Any) -> str:
        name = f"constant.{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value, np.int64), name))
        return name

    def node(self, op: str, inputs: list[str], outputs: list[str] | None = None, **attributes: Any) -> str:
        outputs = outputs or [f"value.{len(self.nodes)}"]
        self.nodes.append(helper.make_node(op, inputs, outputs, name=f"{op}.{len(self.nodes)}", **attributes))
        return outputs[0]
