"""A graph's weights, dequantized, against the checkpoint's through the architecture's mapping.

Initializers have the names of GGUF tensors, joined by `+` where several matrices are one, with `.codes`, `.scales`
and `.zero_points` behind them where they are packed. Shapes: N rows of K columns, B blocks in a row.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from edgeft.console import Log
from edgeft.export.folder import Checkpoint
from edgeft.export.gguf.architectures import TensorRule
from edgeft.parity.finding import Finding
from edgeft.parity.watched_onnx import WatchedOnnx
from edgeft.quant.grids.onnx import MatMulNBits, Packed, dequantize, quantize

OWN_ERRORS = 3.0
"""How much farther than by plain rounding a row may be: rounding that minimizes an output's error leaves larger
errors in the weights."""
MOST = 0.9
"""No rounding leaves a relative error of this; unrelated rows differ by 1.4."""
HALF_PRECISION = 2.0**-10
"""Relative error of a row in float16, and of a scale."""
CODES, SCALES, ZERO_POINTS, ROWS = ".codes", ".scales", ".zero_points", ".rows"


def weight_findings(
    graph: WatchedOnnx, rules: Mapping[str, TensorRule], checkpoint: Checkpoint, log: Log
) -> Iterator[Finding]:
    """Weights that are missing, or farther from the checkpoint's than their type allows; nothing of a graph whose
    weights have other names."""
    stored = {name.removesuffix(CODES) for name in graph.initializers}
    held = {part for name in stored for part in name.split("+")}
    if held.isdisjoint(rules):
        log.say(f"{graph.path.name}: its weights have names of another exporter, so they are not compared")
        return
    for name, rule in rules.items():
        if name not in held:
            message = f"{name} is missing from the graph; it is made from {' and '.join(rule.sources)}"
            yield Finding("tensor", name, message)
    names = [name for name in sorted(stored) if set(name.split("+")) <= rules.keys()]
    with log.progress("bisect: weights", len(names), "tensors") as progress:
        for done, name in enumerate(names, 1):
            yield from _compare(graph, name, [rules[part] for part in name.split("+")], checkpoint)
            progress.update(done)


@dataclass(frozen=True)
class _Stored:
    """A matrix of the file: floats, or codes on a grid."""

    values: np.ndarray | Packed
    grid: MatMulNBits | None
    n_cols: int

    def rows(self) -> np.ndarray:
        """(N, K) float32."""
        if isinstance(self.values, Packed):
            assert self.grid is not None
            return dequantize(self.values, self.grid, self.n_cols)
        return self.values.astype(np.float32).reshape(-1, self.n_cols)


def _compare(graph: WatchedOnnx, name: str, rules: Sequence[TensorRule], checkpoint: Checkpoint) -> Iterator[Finding]:
    parts = [_expected(rule, checkpoint) for rule in rules]
    there = np.concatenate(parts) if parts[0].ndim == 2 else np.concatenate(parts)[None]
    stored = _read(graph, name, there.shape[1])
    here, sources = stored.rows(), " and ".join(source for rule in rules for source in rule.sources)
    if here.shape != there.shape:
        message = f"{name} has the shape {here.shape} in the graph, {there.shape} by config.json"
        yield Finding("tensor", name, message)
        return
    errors, allowed = _row_errors(here, there), _allowed(there, stored.grid)
    wrong = np.flatnonzero(~(errors <= allowed))
    if not len(wrong):
        return
    worst = int(np.nan_to_num(errors, nan=np.inf).argmax())
    why = _layout(stored, there, allowed) or (
        f"row {worst} is off by {errors[worst]:.3g} of its length, rounding explains {allowed[worst]:.3g}"
    )
    yield Finding("tensor", name, f"{name}: {len(wrong)} of {len(errors)} rows are not those of {sources}: {why}")


def _read(graph: WatchedOnnx, name: str, n_cols: int) -> _Stored:
    if name in graph.initializers:
        return _Stored(graph.initializer(name), None, n_cols)
    zero_points = f"{name}{ZERO_POINTS}"
    packed = Packed(
        codes=graph.initializer(f"{name}{CODES}"),
        scales=graph.initializer(f"{name}{SCALES}").astype(np.float32),
        zero_points=graph.initializer(zero_points) if zero_points in graph.initializers else None,
    )
    attributes = _attributes(graph.nodes, {f"{name}{CODES}", f"{name}{ROWS}"})
    bits = attributes.get("bits", attributes.get("expert_weight_bits", 4))
    grid = MatMulNBits(bits, attributes["block_size"], packed.zero_points is None)
    return _Stored(_in_blocks(packed), grid, n_cols)


def _in_blocks(packed: Packed) -> Packed:
    """As MatMulNBits has them, experts' matrices one after another."""
    n_blocks = packed.scales.shape[-1]
    scales = packed.scales.reshape(-1, n_blocks)
    points = packed.zero_points
    return Packed(
        packed.codes.reshape(len(scales), n_blocks, -1),
        scales,
        points if points is None else points.reshape(len(scales), -1),
    )


def _attributes(nodes: Sequence[onnx.NodeProto], names: set[str]) -> dict[str, Any]:
    """Of the first node that reads one of `names`."""
    node = next(node for node in nodes if names & set(node.input))
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _expected(rule: TensorRule, checkpoint: Checkpoint) -> np.ndarray:
    """Float32, of the shape in `rule`."""
    tensor = rule.change(*[checkpoint.read(source) for source in rule.sources])
    return np.asarray(tensor, np.float32).reshape(rule.shape)


def _row_errors(here: np.ndarray, there: np.ndarray) -> np.ndarray:
    """|here - there| / |there| of each row (N,); 0 where both are zero."""
    off, norm = np.linalg.norm(here - there, axis=1), np.linalg.norm(there, axis=1)
    return np.divide(off, norm, out=np.where(off == 0, 0.0, np.inf), where=norm > 0)


def _allowed(there: np.ndarray, grid: MatMulNBits | None) -> np.ndarray:
    """The largest relative error (N,) that rounding each row explains."""
    if grid is None:
        return np.full(len(there), HALF_PRECISION)
    rounded = dequantize(quantize(there, grid), grid, there.shape[1])
    return np.minimum(OWN_ERRORS * _row_errors(rounded, there), MOST) + HALF_PRECISION


def _layout(stored: _Stored, there: np.ndarray, allowed: np.ndarray) -> str | None:
    """How the codes of a packed matrix lie, if the right ones are there in another order."""
    if not isinstance(stored.values, Packed):
        return None
    codes = stored.values.codes
    n_rows, n_blocks, n_bytes = codes.shape
    orders = {
        "its blocks are transposed: (block, row), where MatMulNBits wants (row, block)": codes.reshape(
            n_blocks, n_rows, n_bytes
        ).swapaxes(0, 1),
        "the two codes of each byte are swapped; the first is the low one": codes << 4 | codes >> 4,
        "the codes of each block are in reverse": codes[..., ::-1],
    }
    for said, ordered in orders.items():
        other = replace(stored, values=replace(stored.values, codes=np.ascontiguousarray(ordered)))
        if np.median(_row_errors(other.rows(), there) - allowed) <= 0:
            return said
    return None
