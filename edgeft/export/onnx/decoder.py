"""The graph of a decoder: prompt and decoding in one, with keys and values extended in place.

Names of inputs and outputs are those of optimum, onnxruntime-genai and transformers.js. The value
`layers.<i>.hidden` is what layer i hands on, transformers' `hidden_states[i + 1]` (but for the last, which it norms).

Shapes: B sequences, S tokens of this run, W width, H heads, D width of a head.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from edgeft.errors import ModelError
from edgeft.export.gguf.architectures import TensorRule
from edgeft.export.onnx.architectures.base import Decoder
from edgeft.export.onnx.data_file import Target
from edgeft.export.onnx.experts import ROUTER
from edgeft.export.onnx.graph import Graph
from edgeft.export.onnx.matrices import Matrices
from edgeft.export.onnx.rotary import Rotary
from edgeft.export.onnx.run import declare_run, is_one_token, moved_to_front, one_token, places_of, window_bias
from edgeft.export.onnx.settings import OnnxSettings

POSITIONS = "position_embd.weight"


def build_decoder(
    graph: Graph, decoder: Decoder, rules: Mapping[str, TensorRule], settings: OnnxSettings
) -> list[Target]:
    """Build the graph of `decoder` with the tensors `rules` (by GGUF name); returns what fills its data file."""
    builder = _Builder(graph, decoder, rules, settings)
    builder.build()
    return builder.matrices.targets


class _Builder:
    def __init__(self, graph: Graph, decoder: Decoder, rules: Mapping[str, TensorRule], settings: OnnxSettings) -> None:
        self.graph, self.decoder, self.rules = graph, decoder, rules
        self.matrices = Matrices(graph, rules, settings)
        self.kind = self.matrices.kind
        self.number = np.float16 if settings.half else np.float32
        self.sum = ""
        """What the layers so far have made; `added` is still to be added to it."""
        self.added = ""

    def build(self) -> None:
        graph, decoder = self.graph, self.decoder
        self.run = declare_run(graph)
        graph.output("logits", self.kind, ["batch_size", "num_logits", decoder.n_vocab])
        self.rotary = Rotary(decoder, self.kind)
        ids, back, positions = self._lay_out()
        windows = sorted({layer.window for layer in decoder.layers if layer.window})
        places = places_of(graph, self.run) if windows else ""
        self.windows = {window: window_bias(graph, self.run, places, window, self.kind) for window in windows}
        self.sum = self._embed(ids, positions)
        for number in range(len(decoder.layers)):
            self._attention(number)
            self._feed_forward(number)
        states = self._normed("output_norm", f"layers.{len(decoder.layers) - 1}.hidden")
        kept = graph.node("GatherND", [states, back], "kept", batch_dims=1)
        self._logits(kept)

    def _lay_out(self) -> tuple[str, str, str]:
        """Ids (B, S), where the tokens with logits are (B, S', 1), and positions (B, S) for a table of such, as
        attention wants the tokens; also the tables that rotate them."""
        learned = POSITIONS in self.rules

        def branch(graph: Graph, one: bool) -> Sequence[tuple[str, int]]:
            moved = one_token(graph, self.run) if one else moved_to_front(graph, self.run)
            tables = self.rotary.tables(graph, self.run, moved.positions, one_token=one)
            numbers = [moved.ids, moved.back]
            if learned:
                numbers.append(graph.node("Identity", [moved.positions], "learned"))  # only its own values are given
            return [*((each, TensorProto.INT64) for each in numbers), *((table, self.kind) for table in tables)]

        condition = is_one_token(self.graph, self.run)
        ids, back, *rest = self.graph.choose(
            condition, "one_token", lambda graph: branch(graph, True), lambda graph: branch(graph, False)
        )
        positions = rest.pop(0) if learned else ""
        self.rotary.use(self.graph, ids, rest)
        return ids, back, positions

    def _embed(self, ids: str, positions: str) -> str:
        states = self.matrices.embed(ids, "embedding")
        if POSITIONS in self.rules:
            table = self.matrices.floats(POSITIONS)
            learned = self.graph.node("Gather", [table, positions], "positions")
            states = self.graph.node("Add", [states, learned], "embedding.positions")
        return self._scaled(states, self.decoder.embedding_scale, "embedding.scaled")

    def _attention(self, layer: int) -> None:
        block, name = f"blk.{layer}", f"layers.{layer}.attention"
        before = f"layers.{layer - 1}.hidden" if layer else "embedding.hidden"
        states = self._pre_normed(f"{block}.attn_norm", before)
        past, present = self._cache(layer)
        seen = self.decoder.layers[layer]
        inputs = [*self._projected(states, layer), *past, self.run.last, self.run.total]
        angles = self.rotary.by_place(seen.rope)
        inputs += [*angles, "", self.windows[seen.window] if seen.window else ""]
        attributes: dict[str, Any] = {"do_rotary": 1} if any(angles) else {}
        if self.decoder.attention_cap:
            attributes["softcap"] = self.decoder.attention_cap
        states = self.graph.node(
            "GroupQueryAttention",
            inputs,
            name,
            outputs=[f"{name}.output", *present],
            num_heads=self.decoder.n_heads,
            kv_num_heads=self.decoder.n_kv_heads,
            scale=self.decoder.attention_scale or 1 / math.sqrt(self.decoder.head_dim),
            **attributes,
        )
        states = self._inner_normed(f"{block}.attn_sub_norm", states)
        states = self.matrices.multiply(states, [f"{block}.attn_output"], f"{name}.projected")
        self._add(states, f"{block}.post_attention_norm", name)

    def _projected(self, states: str, layer: int) -> tuple[str, str, str]:
        """Queries (B, S, H D), keys and values, normed, and rotated where attention does not; all three as one value
        where nothing is between them and attention."""
        name, decoder = f"layers.{layer}.attention", self.decoder
        rope = decoder.layers[layer].rope
        parts = [f"blk.{layer}.attn_{part}" for part in "qkv"]
        heads = (decoder.n_heads, decoder.n_kv_heads, decoder.n_kv_heads)
        fused = [f"blk.{layer}.attn_qkv"]
        if f"{fused[0]}.weight" in self.rules or self.matrices.same_grid(parts):
            names = fused if f"{fused[0]}.weight" in self.rules else parts
            together = self.matrices.multiply(states, names, f"{name}.qkv")
            normed = any(f"{part}_norm.weight" in self.rules for part in parts)
            if not normed and not self.rotary.in_nodes(rope):
                return together, "", ""
            query, key, value = self._split(together, [n * decoder.head_dim for n in heads], f"{name}.split")
        else:
            query, key, value = (self.matrices.multiply(states, [part], f"{name}.{part[-1]}") for part in parts)
        query = self._head_normed(f"{parts[0]}_norm", query, heads[0], f"{name}.q")
        key = self._head_normed(f"{parts[1]}_norm", key, heads[1], f"{name}.k")
        if rope is not None and self.rotary.in_nodes(rope):
            query = self.rotary.rotate(rope, query, heads[0], f"{name}.q")
            key = self.rotary.rotate(rope, key, heads[1], f"{name}.k")
        return query, key, value

    def _cache(self, layer: int) -> tuple[list[str], list[str]]:
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        present = [f"present.{layer}.{part}" for part in ("key", "value")]
        n_heads, head_dim = self.decoder.n_kv_heads, self.decoder.head_dim
        for taken, given in zip(past, present, strict=True):
            self.graph.input(taken, self.kind, ["batch_size", n_heads, "past_sequence_length", head_dim])
            self.graph.output(given, self.kind, ["batch_size", n_heads, "total_sequence_length", head_dim])
        return past, present

    def _feed_forward(self, layer: int) -> None:
        block, name = f"blk.{layer}", f"layers.{layer}.mlp"
        states = self._pre_normed(f"{block}.ffn_norm", f"layers.{layer}.attention.hidden")
        made = self._experts(states, block, name) if self.decoder.n_experts else self._dense(states, block, name)
        self._add(made, f"{block}.post_ffw_norm", name)

    def _dense(self, states: str, block: str, name: str) -> str:
        gate, up = f"{block}.ffn_gate", f"{block}.ffn_up"
        inner = self.rules[f"{block}.ffn_down.weight"].shape[1]
        fused = self.rules[f"{up}.weight"].shape[0] == 2 * inner
        if fused or f"{gate}.weight" in self.rules:
            if fused or self.matrices.same_grid([gate, up]):
                together = self.matrices.multiply(states, [up] if fused else [gate, up], f"{name}.gate_up")
                gated, states = self._split(together, [inner, inner], f"{name}.split")
            else:
                gated = self.matrices.multiply(states, [gate], f"{name}.gate")
                states = self.matrices.multiply(states, [up], f"{name}.up")
            states = self.graph.node("Mul", [self._activated(gated, f"{name}.act"), states], f"{name}.gated")
        else:
            states = self._activated(self.matrices.multiply(states, [up], f"{name}.up"), f"{name}.act")
        states = self._inner_normed(f"{block}.ffn_sub_norm", states)
        return self.matrices.multiply(states, [f"{block}.ffn_down"], f"{name}.projected")

    def _experts(self, states: str, block: str, name: str) -> str:
        decoder = self.decoder
        if decoder.activation != "silu":
            raise ModelError(f"config.json: experts with the activation {decoder.activation} have no operator in ONNX")
        logits = self.matrices.multiply(states, [f"{block}.{ROUTER}"], f"{name}.router")
        rows = self.graph.constant("rows_of_experts", np.array([-1, decoder.n_experts]))
        router = self.graph.node("Reshape", [logits, rows], f"{name}.router.rows")
        return self.matrices.mix_experts(
            states, router, block, decoder.n_experts, f"{name}.experts",
            k=decoder.n_experts_used, normalize_routing_weights=int(decoder.normalize_experts),
        )  # fmt: skip

    def _activated(self, states: str, node: str) -> str:
        kind = self.decoder.activation
        if kind == "silu":
            return self.graph.node("QuickGelu", [states], node, alpha=1.0)
        if kind.startswith("gelu"):
            return self.graph.node("Gelu", [states], node, approximate="tanh" if kind == "gelu_tanh" else "none")
        states = self.graph.node("Relu", [states], node)
        return states if kind == "relu" else self.graph.node("Mul", [states, states], f"{node}.squared")

    def _logits(self, states: str) -> None:
        scale, cap = self.decoder.logit_scale, self.decoder.logit_cap
        logits = self._scaled(self.matrices.head(states, "head"), scale, "head.scaled")
        if cap:
            logits = self._scaled(logits, 1 / cap, "head.divided")
            logits = self._scaled(self.graph.node("Tanh", [logits], "head.tanh"), cap, "head.capped")
        self.graph.rename(logits, "logits")

    def _add(self, states: str, norm: str, name: str) -> None:
        """What a block made is to be added to the sum, normed before that where the model has such a norm."""
        if f"{norm}.weight" in self.rules:
            states = self._norm(norm, states, f"{name}.normed")
        self.added = self._scaled(states, self.decoder.residual_scale, f"{name}.scaled")

    def _pre_normed(self, norm: str, hidden: str) -> str:
        """What a block takes; the sum up to here gets the name `hidden`."""
        if f"{norm}.weight" in self.rules:
            return self._normed(norm, hidden)
        if self.added:
            self.sum = self.graph.node("Add", [self.sum, self.added], hidden, outputs=[hidden])
            self.added = ""
        return self.sum

    def _normed(self, norm: str, hidden: str) -> str:
        """The sum with what is to be added, called `hidden`; normed."""
        if not self.added:
            return self._norm(norm, self.sum, norm)
        op = "SkipSimplifiedLayerNormalization" if self.decoder.norm == "rms" else "SkipLayerNormalization"
        outputs = [f"{norm}.output", "", "", hidden]
        inputs = [self.sum, self.added, *self._norm_weights(norm)]
        states = self.graph.node(op, inputs, norm, outputs=outputs, epsilon=self.decoder.epsilon)
        self.sum, self.added = hidden, ""
        return states

    def _norm(self, norm: str, states: str, node: str) -> str:
        op = "SimplifiedLayerNormalization" if self.decoder.norm == "rms" else "LayerNormalization"
        inputs = [states, *self._norm_weights(norm)]
        return self.graph.node(op, inputs, node, epsilon=self.decoder.epsilon, axis=-1)

    def _norm_weights(self, norm: str) -> list[str]:
        parts = ("weight", "bias") if self.decoder.norm == "layer" else ("weight",)
        return [self.matrices.floats(f"{norm}.{part}") for part in parts]

    def _inner_normed(self, norm: str, states: str) -> str:
        return self._norm(norm, states, norm) if f"{norm}.weight" in self.rules else states

    def _head_normed(self, norm: str, states: str, n_heads: int, name: str) -> str:
        """Every head normed by itself, or all together, as the shape of the weight says; unchanged without one."""
        rule = self.rules.get(f"{norm}.weight")
        if rule is None:
            return states
        if rule.shape[0] != self.decoder.head_dim or n_heads == 1:
            return self._norm(norm, states, norm)
        head_dim, node, constant = self.decoder.head_dim, self.graph.node, self.graph.constant
        heads = constant(f"heads_{n_heads}", np.array([0, 0, n_heads, head_dim]))
        flat = constant(f"flat_{n_heads}", np.array([0, 0, n_heads * head_dim]))
        normed = self._norm(norm, node("Reshape", [states, heads], f"{name}.heads"), norm)
        return node("Reshape", [normed, flat], f"{name}.flat")

    def _split(self, states: str, sizes: list[int], node: str) -> list[str]:
        lengths = self.graph.constant("split_" + "_".join(map(str, sizes)), np.array(sizes))
        outputs = [f"{node}.{number}" for number in range(len(sizes))]
        self.graph.node("Split", [states, lengths], node, outputs=outputs, axis=-1)
        return outputs

    def _scaled(self, states: str, factor: float, node: str) -> str:
        if factor == 1.0:
            return states
        return self.graph.node("Mul", [states, self.graph.constant(f"{node}.factor", self.number(factor))], node)
