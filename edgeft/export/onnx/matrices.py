"""The weights of a decoder's graph: float or packed matrices, vectors, and an embedding that may be the head as well.

Names of tensors are those of the GGUF file. Shapes: N outputs, K inputs, B blocks in a row.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from onnx import TensorProto

from edgeft.errors import ModelError
from edgeft.export.gguf.architectures import TensorRule
from edgeft.export.gguf.architectures.base import unchanged
from edgeft.export.onnx.data_file import Target
from edgeft.export.onnx.experts import DOWN, GATE_UP, each_expert, joined_experts
from edgeft.export.onnx.graph import Graph, Slot
from edgeft.export.onnx.settings import OnnxSettings
from edgeft.quant.grids.onnx import MatMulNBits

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
MIDDLES = 0x88
"""Two zero points of a symmetric grid of 4 bits."""
REORDERED = ("attn_q", "attn_k")
"""What llama.cpp's rotation may want in another order; GroupQueryAttention takes rows as checkpoints have them."""


def onnx_rules(rules: Sequence[TensorRule]) -> dict[str, TensorRule]:
    """The tensors of a graph by name: those of the GGUF file with q and k as they are stored, experts' gate and up
    as one, and a tied head left out where llama.cpp wants it once more."""
    named = {}
    for rule in joined_experts({rule.name: rule for rule in rules}):
        reordered = rule.name.split(".")[-2] in REORDERED
        named[rule.name] = replace(rule, change=unchanged) if reordered else rule
    if HEAD in named and named[HEAD].sources == named[EMBEDDING].sources:
        del named[HEAD]
    return named


class Matrices:
    """Announces weights to a graph and makes the nodes that multiply by them."""

    def __init__(self, graph: Graph, rules: Mapping[str, TensorRule], settings: OnnxSettings) -> None:
        self.graph, self.rules, self.settings = graph, rules, settings
        self.kind = TensorProto.FLOAT16 if settings.half else TensorProto.FLOAT
        self.targets: list[Target] = []
        """What is to be filled, in the order of the data file."""
        self._embedding: _Stored | None = None

    def floats(self, *names: str) -> str:
        """A tensor as it is; of several, their rows one after another."""
        rules = [self.rules[name] for name in names]
        shape = (sum(rule.shape[0] for rule in rules), *rules[0].shape[1:])
        slot = self.graph.weight("+".join(names), self.kind, shape)
        self.targets.append(Target(tuple(rules), slot))
        return slot.name

    def multiply(self, states: str, names: Sequence[str], node: str) -> str:
        """`states` times the matrices `names` (without `.weight`), their outputs side by side, plus their biases."""
        weights = [f"{name}.weight" for name in names]
        stored = self._store(weights)
        biases = [f"{name}.bias" for name in names]
        bias = self.floats(*biases) if biases[0] in self.rules else ""
        return self._product(states, stored, bias, node)

    def mix_experts(self, states: str, router: str, block: str, n_experts: int, node: str, **routing: Any) -> str:
        """What the experts of `block` make of `states` (…, W), mixed as the logits `router` (tokens, E) say.

        `routing` are the operator's `k` and `normalize_routing_weights`. Raises ModelError for experts in float16.
        """
        names = [f"{block}.{part}.weight" for part in (GATE_UP, DOWN)]
        grid = self.settings.grid(names[0], math.gcd(*(self.rules[name].shape[1] for name in names)))
        if grid is None and self.kind == TensorProto.FLOAT16:
            raise ModelError(f"{names[0]}: onnxruntime has no experts in float16 on processors; export int4 or fp32")
        together, down = (self._store_experts(name, n_experts, grid) for name in names)
        routing |= {"activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.0, "activation_beta": 0.0}
        if grid is None:
            inputs = [states, router, together.values.name, "", down.values.name]
            return self.graph.node("MoE", inputs, node, **routing)
        inputs = [states, router, together.values.name, together.scales_name, "", down.values.name, down.scales_name]
        inputs += ["", "", "", "", together.zero_points_name, down.zero_points_name, ""]
        if not routing["normalize_routing_weights"]:  # QMoE, other than MoE, would take the softmax of those chosen
            inputs.append(self.graph.node("Softmax", [router], f"{node}.shares", axis=-1))
        return self.graph.node(
            "QMoE",
            inputs,
            node,
            **routing,
            expert_weight_bits=grid.bits,
            block_size=grid.block_size,
            accuracy_level=self.settings.accuracy_level,
        )

    def same_grid(self, names: Sequence[str]) -> bool:
        """Whether matrices (without `.weight`) can be one, with outputs side by side, and biases in all or none."""
        grids = {self._grid(f"{name}.weight") for name in names}
        biased = {f"{name}.bias" in self.rules for name in names}
        return len(grids) == len(biased) == 1

    def embed(self, ids: str, node: str) -> str:
        """Rows of the embedding: (…, K) of ids (…)."""
        stored = self._embedding = self._store([EMBEDDING])
        if stored.grid is None:
            return self.graph.node("Gather", [stored.values.name, ids], node)
        inputs = [self._codes_of_rows(stored), ids, stored.scales_name, self._zero_points_of_rows(stored)]
        attributes: dict[str, Any] = {"gather_axis": 0, "quantize_axis": 1, "block_size": stored.grid.block_size}
        if stored.grid.bits == 8:
            attributes["bits"] = 8
        return self.graph.node("GatherBlockQuantized", inputs, node, **attributes)

    def head(self, states: str, node: str) -> str:
        """Logits; of the embedding's matrix where there is no other. Called after `embed`."""
        stored = self._store([HEAD]) if HEAD in self.rules else self._embedding
        assert stored is not None
        bias = "output.bias" if "output.bias" in self.rules else ""
        return self._product(states, stored, self.floats(bias) if bias else "", node)

    def _grid(self, name: str) -> MatMulNBits | None:
        return self.settings.grid(name, self.rules[name].shape[1])

    def _product(self, states: str, stored: "_Stored", bias: str, node: str) -> str:
        if stored.grid is None:
            product = self.graph.node("FusedMatMul", [states, stored.values.name], node, transB=1)
            return self.graph.node("Add", [product, bias], f"{node}.bias") if bias else product
        n_out, n_in = stored.shape
        inputs = [states, stored.values.name, stored.scales_name, stored.zero_points_name, "", bias]
        return self.graph.node(
            "MatMulNBits",
            inputs,
            node,
            K=n_in,
            N=n_out,
            bits=stored.grid.bits,
            block_size=stored.grid.block_size,
            accuracy_level=self.settings.accuracy_level,
        )

    def _store(self, names: Sequence[str]) -> "_Stored":
        rules = tuple(self.rules[name] for name in names)
        n_out, n_in = sum(rule.shape[0] for rule in rules), rules[0].shape[1]
        grid, name = self._grid(names[0]), "+".join(names)
        blocks = grid and (-(-n_in // grid.block_size), grid.block_size * grid.bits // 8)
        return self._announce(name, rules, (n_out,), n_in, grid, blocks or ())

    def _store_experts(self, name: str, n_experts: int, grid: MatMulNBits | None) -> "_Stored":
        """The matrices of all experts, one after another."""
        rule = self.rules[name]
        rows, n_in = (n_experts, rule.shape[0] // n_experts), rule.shape[1]
        codes = (n_in * grid.bits // 8,) if grid else ()
        return self._announce(name, each_expert(rule, n_experts), rows, n_in, grid, codes)

    def _announce(
        self,
        name: str,
        rules: tuple[TensorRule, ...],
        rows: tuple[int, ...],
        n_in: int,
        grid: MatMulNBits | None,
        codes_of_row: tuple[int, ...],
    ) -> "_Stored":
        shape, weight = (rows[-1], n_in), self.graph.weight
        if grid is None:
            stored = _Stored(shape, None, weight(name, self.kind, (*rows, n_in)))
        else:
            n_blocks = -(-n_in // grid.block_size)
            codes = weight(f"{name}.codes", TensorProto.UINT8, (*rows, *codes_of_row))
            scales = weight(f"{name}.scales", self.kind, (*rows, n_blocks))
            zero_points = None
            if not grid.symmetric:
                n_bytes = -(-n_blocks * grid.bits // 8)
                zero_points = weight(f"{name}.zero_points", TensorProto.UINT8, (*rows, n_bytes))
            stored = _Stored(shape, grid, codes, scales, zero_points)
        self.targets.append(Target(rules, stored.values, stored.scales, stored.zero_points, grid))
        return stored

    def _codes_of_rows(self, stored: "_Stored") -> str:
        """The packed matrix as GatherBlockQuantized wants it: (N, K) of uint4, or uint8 with 8 bits."""
        assert stored.grid is not None
        kind = TensorProto.UINT4 if stored.grid.bits == 4 else TensorProto.UINT8
        return self.graph.view(stored.values, f"{EMBEDDING}.rows", kind, stored.shape)

    def _zero_points_of_rows(self, stored: "_Stored") -> str:
        """(N, B) of the same type; for 4 bits they must be there even where all are in the middle."""
        grid, (n_out, n_in) = stored.grid, stored.shape
        assert grid is not None
        n_blocks = n_in // grid.block_size
        if grid.bits == 8:
            return stored.zero_points_name  # none: 128, as here
        name = f"{EMBEDDING}.rows.zero_points"
        if stored.zero_points is not None:
            return self.graph.view(stored.zero_points, name, TensorProto.UINT4, (n_out, n_blocks))
        slot = self.graph.weight(name, TensorProto.UINT4, (n_out, n_blocks))
        self.targets.append(Target((), slot, fill=MIDDLES))
        return name


class _Stored:
    """A matrix (N, K) in the data file."""

    def __init__(
        self,
        shape: tuple[int, int],
        grid: MatMulNBits | None,
        values: Slot,
        scales: Slot | None = None,
        zero_points: Slot | None = None,
    ) -> None:
        self.shape, self.grid, self.values, self.scales, self.zero_points = shape, grid, values, scales, zero_points
        self.scales_name = scales.name if scales else ""
        self.zero_points_name = zero_points.name if zero_points else ""
