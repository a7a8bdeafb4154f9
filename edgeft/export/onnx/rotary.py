"""Rotating queries and keys by the positions a caller gives."""

from typing import Any

import numpy as np
from onnx import TensorProto

from edgeft.export.onnx.architectures.base import Decoder
from edgeft.export.onnx.graph import Graph
from edgeft.export.onnx.rope import Rope
from edgeft.export.onnx.sequence import Sequence


class Rotary:
    """Cosines and sines of the positions of a run, computed once for all layers that rotate alike.

    There is no table of all positions: it would outweigh a small model with a long context, and end somewhere.
    """

    def __init__(self, graph: Graph, decoder: Decoder, places: Sequence, kind: int) -> None:
        self.graph, self.head_dim, self.kind = graph, decoder.head_dim, kind
        self.places = places
        self._rows = self._number_rows() if any(layer.rope for layer in decoder.layers) else ""
        self._made: dict[int, tuple[str, str]] = {}
        self._keys: dict[int, Rope] = {}

    def rotate(self, rope: Rope, states: str, n_heads: int, name: str) -> str:
        """`states` (B, S, n_heads D) with the first of each head's values rotated in pairs (i, i + pairs)."""
        cosines, sines = self._tables(rope)
        n_rotated = 2 * len(rope.frequencies)
        partial: dict[str, Any] = {"rotary_embedding_dim": n_rotated} if n_rotated != self.head_dim else {}
        return self.graph.node(
            "RotaryEmbedding",
            [states, self._rows, cosines, sines],
            f"{name}.rotated",
            num_heads=n_heads,
            **partial,
        )

    def _tables(self, rope: Rope) -> tuple[str, str]:
        """Cosines and sines (B S, pairs)."""
        if id(rope) not in self._made:
            self._keys[id(rope)] = rope  # so that no other can get its id
            self._made[id(rope)] = self._make(rope, f"rope.{len(self._made)}")
        return self._made[id(rope)]

    def _make(self, rope: Rope, name: str) -> tuple[str, str]:
        node, constant = self.graph.node, self.graph.constant
        column = constant("column", np.array([-1, 1]))
        positions = node("Reshape", [self.places.positions, column], f"{name}.positions")
        angles = node(
            "Mul", [node("Cast", [positions], f"{name}.float", to=TensorProto.FLOAT), self._frequencies(rope, name)],
            f"{name}.angles",
        )  # fmt: skip
        tables = []
        for function in ("Cos", "Sin"):
            values = node(function, [angles], f"{name}.{function.lower()}")
            if rope.amplitude != 1.0:
                factor = constant(f"{name}.amplitude", np.float32(rope.amplitude))
                values = node("Mul", [values, factor], f"{name}.{function.lower()}.scaled")
            if self.kind != TensorProto.FLOAT:
                values = node("Cast", [values], f"{name}.{function.lower()}.cast", to=self.kind)
            tables.append(values)
        return tables[0], tables[1]

    def _frequencies(self, rope: Rope, name: str) -> str:
        """(pairs,); of LongRoPE the long ones as soon as a sequence is longer than the short context."""
        short = self.graph.constant(f"{name}.frequencies", rope.frequencies)
        if rope.long_frequencies is None:
            return short
        node, constant = self.graph.node, self.graph.constant
        long = constant(f"{name}.long", rope.long_frequencies)
        limit = constant(f"{name}.limit", np.int64(rope.short_tokens))
        furthest = node("ReduceMax", [self.places.positions], f"{name}.furthest", keepdims=0)
        beyond = node("GreaterOrEqual", [furthest, limit], f"{name}.beyond")
        return node("Where", [beyond, long, short], f"{name}.chosen")

    def _number_rows(self) -> str:
        """(B, S) int64: for each token its row of the tables."""
        node, constant = self.graph.node, self.graph.constant
        size = node("Size", [self.places.positions], "rope.size")
        rows = node("Range", [constant("zero", np.int64(0)), size, constant("one", np.int64(1))], "rope.range")
        return node("Reshape", [rows, node("Shape", [self.places.positions], "rope.shape")], "rope.rows")
