"""Rotating queries and keys by the positions a caller gives.

GroupQueryAttention turns them itself, but by the place a token has in its sequence's buffer. So the rows of the tables
it reads are laid out by place, and hold the angles of the caller's positions; where a head does not suit it, nodes
before it turn queries and keys. There is no table of all positions: it would outweigh a small model with a long
context, and end somewhere.

Shapes: B sequences, S tokens of this run, T tokens with those before it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from edgeft.export.onnx.architectures.base import Decoder
from edgeft.export.onnx.graph import Graph
from edgeft.export.onnx.rope import Rope
from edgeft.export.onnx.run import Run, places_of

Layout = Callable[[str, str], str]
"""From a table with a row for each token of the run, and its name, to one with a row for each place."""
DISAGREEMENT = "sequences_of_a_batch_must_have_equal_position_ids_at_equal_places"
"""The name of the node that fails when they have not: attention reads one table for all of them."""


class Rotary:
    """Cosines and sines of the positions of a run, computed once for all layers that rotate alike."""

    def __init__(self, decoder: Decoder, kind: int) -> None:
        self.head_dim, self.kind = decoder.head_dim, kind
        self._ropes = list({id(layer.rope): layer.rope for layer in decoder.layers if layer.rope}.values())
        self._tables: dict[int, tuple[str, str]] = {}
        self._rows = ""

    def in_nodes(self, rope: Rope | None) -> bool:
        """Whether nodes of their own must rotate so: attention wants heads of 16, 32, … and 8, 16, … pairs."""
        return rope is not None and bool(self.head_dim % 16 or len(rope.frequencies) % 8)

    def tables(self, graph: Graph, run: Run, positions: str, *, one_token: bool) -> list[str]:
        """Nodes that make cosines and sines of `positions` (B, S), in turn for each rotation: (T or more, pairs) by
        place where attention rotates, else (B S, pairs)."""
        made, lay_out = [], None
        for number, rope in enumerate(self._ropes):
            tables = self._make(graph, rope, positions, f"rope.{number}")
            if not self.in_nodes(rope):
                lay_out = lay_out or (_pad(graph, run) if one_token else _scatter(graph, run, positions, self.kind))
                names = (f"rope.{number}.cos", f"rope.{number}.sin")
                tables = [lay_out(table, name) for table, name in zip(tables, names, strict=True)]
            made += tables
        return made

    def use(self, graph: Graph, ids: str, tables: Sequence[str]) -> None:
        """Read these `tables` for the tokens of `ids` (B, S) from here on."""
        self.graph = graph
        pairs = zip(tables[::2], tables[1::2], strict=True)
        self._tables = {id(rope): pair for rope, pair in zip(self._ropes, pairs, strict=True)}
        if any(self.in_nodes(rope) for rope in self._ropes):
            self._rows = _number_rows(graph, ids)

    def by_place(self, rope: Rope | None) -> tuple[str, str]:
        """Cosines and sines as GroupQueryAttention reads them: row p is for the token at place p. None ("") where it
        is not to rotate."""
        return ("", "") if rope is None or self.in_nodes(rope) else self._tables[id(rope)]

    def rotate(self, rope: Rope, states: str, n_heads: int, name: str) -> str:
        """`states` (B, S, n_heads D) with the first of each head's values rotated in pairs (i, i + pairs)."""
        n_rotated = 2 * len(rope.frequencies)
        partial: dict[str, Any] = {"rotary_embedding_dim": n_rotated} if n_rotated != self.head_dim else {}
        return self.graph.node(
            "RotaryEmbedding",
            [states, self._rows, *self._tables[id(rope)]],
            f"{name}.rotated",
            num_heads=n_heads,
            **partial,
        )

    def _make(self, graph: Graph, rope: Rope, positions: str, name: str) -> list[str]:
        """Cosines and sines (B S, pairs)."""
        node, constant = graph.node, graph.constant
        column = node("Reshape", [positions, constant("column", np.array([-1, 1]))], f"{name}.positions")
        numbers = node("Cast", [column], f"{name}.float", to=TensorProto.FLOAT)
        angles = node("Mul", [numbers, _frequencies(graph, rope, positions, name)], f"{name}.angles")
        tables = []
        for function in ("Cos", "Sin"):
            values = node(function, [angles], f"{name}.{function.lower()}")
            if rope.amplitude != 1.0:
                factor = constant(f"{name}.amplitude", np.float32(rope.amplitude))
                values = node("Mul", [values, factor], f"{name}.{function.lower()}.scaled")
            if self.kind != TensorProto.FLOAT:
                values = node("Cast", [values], f"{name}.{function.lower()}.cast", to=self.kind)
            tables.append(values)
        return tables


def _frequencies(graph: Graph, rope: Rope, positions: str, name: str) -> str:
    """(pairs,); of LongRoPE the long ones as soon as a sequence is longer than the short context."""
    short = graph.constant(f"{name}.frequencies", rope.frequencies)
    if rope.long_frequencies is None:
        return short
    node, constant = graph.node, graph.constant
    long = constant(f"{name}.long", rope.long_frequencies)
    limit = constant(f"{name}.limit", np.int64(rope.short_tokens))
    furthest = node("ReduceMax", [positions], f"{name}.furthest", keepdims=0)
    return node("Where", [node("GreaterOrEqual", [furthest, limit], f"{name}.beyond"), long, short], f"{name}.chosen")


def _number_rows(graph: Graph, ids: str) -> str:
    """(B, S) int64: for each token its row of tables (B S, pairs)."""
    zero, one = graph.constant("zero", np.int64(0)), graph.constant("one", np.int64(1))
    rows = graph.node("Range", [zero, graph.node("Size", [ids], "rope.size"), one], "rope.range")
    return graph.node("Reshape", [rows, graph.node("Shape", [ids], "rope.shape")], "rope.rows")


def _pad(graph: Graph, run: Run) -> Layout:
    """Lays out a table by place, for one token: those before it need no row any more, those behind have none yet."""
    behind = graph.node("Sub", [run.n_total, run.lengths], "rope.behind")
    around = graph.node("Concat", [run.last_place, behind], "rope.around", axis=0)
    axis = graph.constant("axis_0", np.array([0]))
    return lambda table, name: graph.node("Pad", [table, around, "", axis], f"{name}.by_place")


def _scatter(graph: Graph, run: Run, positions: str, kind: int) -> Layout:
    """Lays out a table by place, for any run: each token puts its row at its place, padding behind all places."""
    node, constant = graph.node, graph.constant
    lengths = node("Unsqueeze", [run.lengths, constant("axis_1", np.array([1]))], "rope.lengths")
    places = places_of(graph, run)
    real = node("Less", [places, lengths], "rope.real")
    told = node("Where", [real, positions, constant("zero", np.int64(0))], "rope.told")
    places = node("Where", [real, places, run.n_total], "rope.places")
    rows = node("Reshape", [places, constant("column", np.array([-1, 1]))], "rope.rows")
    n_rows = node("Add", [run.n_total, constant("one", np.int64(1))], "rope.n_rows")
    rows = _checked(graph, rows, n_rows, told)

    def lay_out(table: str, name: str) -> str:
        shape = node("Concat", [n_rows, node("Shape", [table], f"{name}.width", start=1)], f"{name}.shape", axis=0)
        zeros = node("ConstantOfShape", [shape], f"{name}.zeros", value=_zero(kind))
        return node("ScatterND", [zeros, rows, table], f"{name}.by_place")

    return lay_out


def _checked(graph: Graph, rows: str, n_rows: str, told: str) -> str:
    """`rows` (B S, 1), or the failure of a node called DISAGREEMENT.

    The positions `told` (B, S) are put at their places and looked up again: a token that finds another's shares its
    place with it.
    """
    node, constant = graph.node, graph.constant
    told = node("Reshape", [told, constant("flat", np.array([-1]))], "rope.told_flat")
    nothing = node("ConstantOfShape", [n_rows], "rope.nothing", value=_zero(TensorProto.INT64))
    found = node("GatherND", [node("ScatterND", [nothing, rows, told], "rope.given"), rows], "rope.found")
    off = node("Abs", [node("Sub", [found, told], "rope.off")], "rope.how_far_off")
    wrong = node("Min", [node("ReduceMax", [off], "rope.furthest_off"), constant("one", np.int64(1))], "rope.wrong")
    n_tokens = node("Add", [node("Shape", [told], "rope.n_tokens"), wrong], "rope.n_tokens_if_right")
    shape = node("Concat", [n_tokens, constant("axis_1", np.array([1]))], "rope.shape_if_right", axis=0)
    return node("Reshape", [rows, shape], DISAGREEMENT)


def _zero(kind: int) -> TensorProto:
    return helper.make_tensor("zero", kind, [1], [0])
