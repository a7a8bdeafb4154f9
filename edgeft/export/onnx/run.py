"""Where the tokens of a run stand: what GroupQueryAttention must know, made from ids, mask and positions.

The operator keeps the keys of each sequence from the first place of its buffer on and wants padding behind the
tokens. Callers pad in front. So the ids of a run are moved to the front here, and what comes out of the last layer
is moved back: the padding of a prompt is never attended to, and each later token falls to its own place. For this
to hold, padding in front must end within the first run of a sequence; padding behind may stand anywhere.

A single token, as in decoding, stands where it should: for it almost none of these nodes are run.

Shapes: B sequences, S tokens of this run, T tokens with those before it.
"""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from edgeft.export.onnx.graph import Graph

OUTSIDE = -1e4
"""Added to the scores of keys outside a window; with this float16 does not overflow either."""


@dataclass(frozen=True)
class Run:
    """What a caller gives, and what follows from the mask; names of values in the graph."""

    ids: str
    """(B, S) int64."""
    mask: str
    """(B, T) int64."""
    positions: str
    """(B, S) int64."""
    keep: str
    """() int64: of how many last tokens logits are wanted; 0: of all."""
    n_total: str
    """(1,) int64: T."""
    total: str
    """(1,) int32: T (`total_sequence_length`)."""
    lengths: str
    """(B,) int64: tokens of each sequence, those before this run included."""
    last_place: str
    """(B,) int64: the place of each sequence's last token in its buffer."""
    last: str
    """The same in int32 (`seqlens_k`)."""


@dataclass(frozen=True)
class Moved:
    """The tokens of a run with padding behind them."""

    ids: str
    """(B, S) int64."""
    positions: str
    """(B, S) int64."""
    back: str
    """(B, S', 1) int64: where each of the last S' tokens now is."""


def declare_run(graph: Graph) -> Run:
    """Declare the inputs but the keys and values."""
    ids = graph.input("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"])
    mask = graph.input("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"])
    positions = graph.input("position_ids", TensorProto.INT64, ["batch_size", "sequence_length"])
    keep = graph.optional_input("num_logits_to_keep", np.zeros((), np.int64))
    node = graph.node
    n_total = node("Shape", [mask], "run.n_total", start=1, end=2)
    lengths = node("ReduceSum", [mask, graph.constant("axis_1", np.array([1]))], "run.lengths", keepdims=0)
    last = node("Sub", [lengths, graph.constant("one", np.int64(1))], "run.last_place")
    return Run(
        ids=ids,
        mask=mask,
        positions=positions,
        keep=keep,
        n_total=n_total,
        total=node("Cast", [n_total], "run.total", to=TensorProto.INT32),
        lengths=lengths,
        last_place=last,
        last=node("Cast", [last], "run.last", to=TensorProto.INT32),
    )


def is_one_token(graph: Graph, run: Run) -> str:
    """() bool: whether this run is of one token of one sequence."""
    size = graph.node("Size", [run.ids], "run.size")
    return graph.node("Equal", [size, graph.constant("one", np.int64(1))], "run.is_one_token")


def one_token(graph: Graph, run: Run) -> Moved:
    """Where there is but one, nothing moves."""
    first = graph.constant("first_of_all", np.zeros((1, 1, 1), np.int64))
    return Moved(graph.node("Identity", [run.ids], "ids"), run.positions, graph.node("Identity", [first], "back"))


def moved_to_front(graph: Graph, run: Run) -> Moved:
    """Padding in front of the tokens of this run goes behind them."""
    node, zero = graph.node, graph.constant("zero", np.int64(0))
    n_now = node("Shape", [run.ids], "n_now", start=1, end=2)
    steps = _steps(graph, n_now, "steps")
    padding = node("ArgMax", [run.mask], "padding", axis=1, keepdims=1)
    shift = node(
        "Max", [node("Sub", [padding, node("Sub", [run.n_total, n_now], "n_before")], "unseen"), zero], "shift"
    )
    last_step = node("Sub", [n_now, graph.constant("one", np.int64(1))], "last_step")
    source = node("Min", [node("Add", [steps, shift], "moved"), last_step], "source")
    back = node("Max", [node("Sub", [steps, shift], "moved_back"), zero], "destination")
    return Moved(
        node("GatherElements", [run.ids, source], "ids", axis=1),
        node("GatherElements", [run.positions, source], "positions", axis=1),
        _kept(graph, back, run.keep),
    )


def _kept(graph: Graph, back: str, keep: str) -> str:
    """The last `keep` columns, all for 0, with a new last axis."""
    axis, end = graph.constant("axis_1", np.array([1])), graph.constant("end", np.array([np.iinfo(np.int64).max]))
    first = graph.node("Reshape", [graph.node("Neg", [keep], "keep.negative"), axis], "keep.first")
    kept = graph.node("Slice", [back, first, end, axis], "keep.columns")
    return graph.node("Unsqueeze", [kept, graph.constant("axis_last", np.array([-1]))], "back")


def _steps(graph: Graph, n_now: str, name: str) -> str:
    """(S,) int64: 0 … S - 1, where `n_now` (1,) is S."""
    zero, one = graph.constant("zero", np.int64(0)), graph.constant("one", np.int64(1))
    return graph.node("Range", [zero, graph.node("Squeeze", [n_now], f"{name}.end"), one], name)


def places_of(graph: Graph, run: Run) -> str:
    """(B, S) int64: where GroupQueryAttention puts each token among those of its sequence, padding behind them."""
    node = graph.node
    n_now = node("Shape", [run.ids], "places.n_now", start=1, end=2)
    behind = node("Sub", [run.lengths, n_now], "places.behind")
    first = node("Max", [behind, graph.constant("zero", np.int64(0))], "places.first")
    column = node("Unsqueeze", [first, graph.constant("axis_1", np.array([1]))], "places.starts")
    return node("Add", [column, _steps(graph, n_now, "places.steps")], "places")


def window_bias(graph: Graph, run: Run, places: str, window: int, kind: int) -> str:
    """(B, 1, S, T) of type `kind`: OUTSIDE for keys that are `window` or more tokens before the query, else 0.

    GroupQueryAttention's own `local_window_size` counts the query's token in onnxruntime 1.31 and not in 1.23.
    """
    name, node = f"window{window}", graph.node
    one, zero = graph.constant("one", np.int64(1)), graph.constant("zero", np.int64(0))
    queries = node("Unsqueeze", [places, graph.constant("axis_last", np.array([-1]))], f"{name}.queries")
    keys = node("Range", [zero, node("Squeeze", [run.n_total], f"{name}.total"), one], f"{name}.keys")
    distance = node("Sub", [queries, keys], f"{name}.distance")
    outside = node("GreaterOrEqual", [distance, graph.constant(name, np.int64(window))], f"{name}.outside")
    number = np.float16 if kind == TensorProto.FLOAT16 else np.float32
    low, none = graph.constant("low", number(OUTSIDE)), graph.constant("none", number(0))
    bias = node("Where", [outside, low, none], f"{name}.scores")
    return node("Unsqueeze", [bias, graph.constant("axis_1", np.array([1]))], f"{name}.bias")
