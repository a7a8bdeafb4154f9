"""Where the tokens of a run stand: what GroupQueryAttention must know, made from ids, mask and positions.

The operator keeps the keys of each sequence from the first place of its buffer on and wants padding behind the
tokens. Callers pad in front. So the ids of a run are moved to the front here, and what comes out of the last layer
is moved back: the padding of a prompt is never attended to, and each later token falls to its own place. For this
to hold, padding in front must end within the first run of a sequence; padding behind may stand anywhere.

Shapes: B sequences, S tokens of this run, T tokens with those before it.
"""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from edgeft.export.onnx.graph import Graph

OUTSIDE = -1e4
"""Added to the scores of keys outside a window; with this float16 does not overflow either."""


@dataclass(frozen=True)
class Sequence:
    """Names of values in the graph."""

    ids: str
    """(B, S) int64, padding behind the tokens."""
    positions: str
    """(B, S) int64, likewise."""
    last: str
    """(B,) int32: the place of each sequence's last token in its buffer (`seqlens_k`)."""
    total: str
    """(1,) int32: T (`total_sequence_length`)."""
    steps: str
    """(S,) int64: 0 … S - 1."""
    back: str
    """(B, S', 1) int64: where each of the last S' tokens now is; S' is `num_logits_to_keep`, or S for 0."""


def sequence(graph: Graph) -> Sequence:
    """Declare the inputs but the keys and values; returns what the layers need."""
    ids = graph.input("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"])
    mask = graph.input("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"])
    positions = graph.input("position_ids", TensorProto.INT64, ["batch_size", "sequence_length"])
    keep = graph.optional_input("num_logits_to_keep", np.zeros((), np.int64))
    zero, one = graph.constant("zero", np.int64(0)), graph.constant("one", np.int64(1))
    node = graph.node
    n_now = node("Shape", [ids], "sequence.length", start=1, end=2)
    n_total = node("Shape", [mask], "sequence.total", start=1, end=2)
    n_before = node("Sub", [n_total, n_now], "sequence.before")
    steps = node("Range", [zero, node("Squeeze", [n_now], "sequence.scalar"), one], "sequence.steps")
    padding = node("ArgMax", [mask], "sequence.padding", axis=1, keepdims=1)
    shift = node("Max", [node("Sub", [padding, n_before], "sequence.unseen"), zero], "sequence.shift")
    last_step = node("Sub", [n_now, one], "sequence.last_step")
    source = node("Min", [node("Add", [steps, shift], "sequence.moved"), last_step], "sequence.source")
    back = node("Max", [node("Sub", [steps, shift], "sequence.moved_back"), zero], "sequence.destination")
    return Sequence(
        ids=node("GatherElements", [ids, source], "sequence.ids", axis=1),
        positions=node("GatherElements", [positions, source], "sequence.positions", axis=1),
        last=_last(graph, mask),
        total=node("Cast", [n_total], "sequence.total32", to=TensorProto.INT32),
        steps=steps,
        back=_kept(graph, back, keep),
    )


def _last(graph: Graph, mask: str) -> str:
    seen = graph.node("Cast", [mask], "sequence.mask", to=TensorProto.INT32)
    axis = graph.constant("axis_1", np.array([1]))
    length = graph.node("ReduceSum", [seen, axis], "sequence.lengths", keepdims=0)
    return graph.node("Sub", [length, graph.constant("one32", np.array([1], np.int32))], "sequence.last")


def _kept(graph: Graph, back: str, keep: str) -> str:
    """The last `keep` columns, all for 0, with a new last axis."""
    axis, end = graph.constant("axis_1", np.array([1])), graph.constant("end", np.array([np.iinfo(np.int64).max]))
    first = graph.node("Reshape", [graph.node("Neg", [keep], "keep.negative"), axis], "keep.first")
    kept = graph.node("Slice", [back, first, end, axis], "keep.columns")
    return graph.node("Unsqueeze", [kept, graph.constant("axis_last", np.array([-1]))], "keep.indices")


def window_bias(graph: Graph, places: Sequence, window: int, kind: int) -> str:
    """(B, 1, S, T) of type `kind`: OUTSIDE for keys that are `window` or more tokens before the query, else 0.

    GroupQueryAttention's own `local_window_size` counts the query's token in onnxruntime 1.31 and not in 1.23.
    """
    name, node = f"window{window}", graph.node
    count = node("Cast", [places.last], f"{name}.last", to=TensorProto.INT64)
    n_now = node("Shape", [places.ids], f"{name}.length", start=1, end=2)
    one, zero = graph.constant("one", np.int64(1)), graph.constant("zero", np.int64(0))
    behind = node("Sub", [node("Add", [count, one], f"{name}.count"), n_now], f"{name}.before")
    first = node("Max", [behind, zero], f"{name}.first")
    axes = graph.constant("axes_12", np.array([1, 2]))
    column = node("Unsqueeze", [places.steps, graph.constant("axis_last", np.array([-1]))], f"{name}.steps")
    queries = node("Add", [node("Unsqueeze", [first, axes], f"{name}.starts"), column], f"{name}.queries")
    total = node("Squeeze", [node("Cast", [places.total], f"{name}.total", to=TensorProto.INT64)], f"{name}.scalar")
    keys = node("Range", [zero, total, one], f"{name}.keys")
    distance = node("Sub", [queries, keys], f"{name}.distance")
    outside = node("GreaterOrEqual", [distance, graph.constant(name, np.int64(window))], f"{name}.outside")
    number = np.float16 if kind == TensorProto.FLOAT16 else np.float32
    low, none = graph.constant("low", number(OUTSIDE)), graph.constant("none", number(0))
    bias = node("Where", [outside, low, none], f"{name}.scores")
    return node("Unsqueeze", [bias, graph.constant("axis_1", np.array([1]))], f"{name}.bias")
