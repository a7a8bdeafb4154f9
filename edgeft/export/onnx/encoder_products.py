"""How an encoder's matrices are stored and multiplied: in float, or in int8 with the inputs rounded as well.

Weights are rounded per output (column), symmetrically, and so that no processor cuts a sum (`int8_columns`); inputs
to uint8 with one scale a tensor, found anew in every run (`DynamicInt8`) or once, on calibration texts
(`StaticInt8`). Embeddings have a scale a row. The arithmetic is that of onnxruntime's DynamicQuantizeMatMul and of
ONNX's QuantizeLinear.

Shapes: K inputs, N outputs, V rows of a table, D its width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from onnx import TensorProto

from edgeft.errors import ModelError
from edgeft.export.onnx.graph import Graph
from edgeft.export.onnx.int8_columns import Quantizer, quantize_columns, quantize_pairs


@dataclass(frozen=True)
class Product:
    """`x @ W` in the graph; `bias` names what is not added yet, "" where nothing is."""

    value: str
    bias: str = ""


@dataclass(frozen=True)
class Range:
    """The least and the greatest value of a tensor that its codes must reach."""

    low: float
    high: float

    def grid(self) -> tuple[float, int]:
        """Scale and zero point of uint8 codes: the range is widened to hold zero, which has a code of its own."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        scale = float(np.float32((high - low) / 255)) or 1.0
        return scale, int(np.clip(np.rint(-low / scale), 0, 255))


class Products(Protocol):
    """One way of multiplying."""

    @property
    def elem_type(self) -> int:
        """The ONNX type of what flows between the operators."""
        ...

    def multiply(self, graph: Graph, name: str, x: str, weight: np.ndarray, bias: np.ndarray | None) -> Product:
        """`x` (…, K) times `weight` float32 (K, N), plus `bias` (N,) or not yet."""
        ...

    def look_up(self, graph: Graph, name: str, ids: str, table: np.ndarray) -> str:
        """Rows of `table` float32 (V, D) by `ids`."""
        ...


@dataclass(frozen=True)
class Float:
    """Weights and sums in float32 or float16."""

    elem_type: int = TensorProto.FLOAT

    def multiply(self, graph: Graph, name: str, x: str, weight: np.ndarray, bias: np.ndarray | None) -> Product:
        """See `Products`; the bias is left to the operator behind."""
        stored = graph.constant(f"{name}.weight", float_array(weight, self.elem_type, name))
        return Product(graph.node("MatMul", [x, stored], name), _float_bias(graph, name, bias, self.elem_type))

    def look_up(self, graph: Graph, name: str, ids: str, table: np.ndarray) -> str:
        """See `Products`."""
        return graph.node(
            "Gather", [graph.constant(name, float_array(table, self.elem_type, name)), ids], f"{name}.row"
        )


@dataclass(frozen=True)
class _Int8:
    """`scalings` (K,), by product name, divide the channels of inputs before they are rounded; see
    `encoder_scalings`. `quantize` rounds the weights of products."""

    scalings: Mapping[str, np.ndarray] = field(default_factory=dict)
    elem_type: int = TensorProto.FLOAT
    quantize: Quantizer = quantize_pairs

    def _scaled(self, graph: Graph, name: str, x: str, weight: np.ndarray) -> tuple[str, np.ndarray]:
        """Input and weights of the same product with evened channels."""
        if name not in self.scalings:
            return x, weight
        scaling = self.scalings[name]
        inverse = graph.constant(f"{name}.scaling", (1 / scaling).astype(np.float32))
        return graph.node("Mul", [x, inverse], f"{name}.scaled"), weight * scaling[:, None]

    def look_up(self, graph: Graph, name: str, ids: str, table: np.ndarray) -> str:
        """See `Products`."""
        codes, scales = quantize_columns(np.ascontiguousarray(table.T))
        codes_row = graph.node("Gather", [graph.constant(name, np.ascontiguousarray(codes.T)), ids], f"{name}.codes")
        scale = graph.node("Gather", [graph.constant(f"{name}.scale", scales[:, None]), ids], f"{name}.scales")
        floats = graph.node("Cast", [codes_row], f"{name}.cast", to=TensorProto.FLOAT)
        return graph.node("Mul", [floats, scale], f"{name}.row")


@dataclass(frozen=True)
class DynamicInt8(_Int8):
    """int8 weights; each run finds the range of an input among all values of the batch."""

    def multiply(self, graph: Graph, name: str, x: str, weight: np.ndarray, bias: np.ndarray | None) -> Product:
        """See `Products`; the bias is added."""
        x, weight = self._scaled(graph, name, x, weight)
        codes, scales = self.quantize(weight)
        inputs = [x, graph.constant(f"{name}.weight", codes), graph.constant(f"{name}.scale", scales), ""]
        inputs.append(_float_bias(graph, name, bias, TensorProto.FLOAT))
        return Product(graph.node("DynamicQuantizeMatMul", inputs, name))


@dataclass(frozen=True)
class StaticInt8(_Int8):
    """int8 weights and inputs with fixed `ranges`, by product name, as QuantizeLinear and DequantizeLinear around a
    float MatMul (QDQ), which runtimes put together into an integer one."""

    ranges: Mapping[str, Range] = field(default_factory=dict)

    def multiply(self, graph: Graph, name: str, x: str, weight: np.ndarray, bias: np.ndarray | None) -> Product:
        """See `Products`; the bias is left to the operator behind."""
        x, weight = self._scaled(graph, name, x, weight)
        codes, scales = self.quantize(weight)
        scale, zero_point = self.ranges[name].grid()
        grid = [
            graph.constant(f"{name}.input.scale", np.array(scale, np.float32)),
            graph.constant(f"{name}.input.zero_point", np.array(zero_point, np.uint8)),
        ]
        rounded = graph.node("QuantizeLinear", [x, *grid], f"{name}.input.quantize")
        x = graph.node("DequantizeLinear", [rounded, *grid], f"{name}.input.dequantize")
        columns = [
            graph.constant(f"{name}.weight", codes),
            graph.constant(f"{name}.scale", scales),
            graph.constant(f"{name}.zero_point", np.zeros(len(scales), np.int8)),
        ]
        weights = graph.node("DequantizeLinear", columns, f"{name}.weight.dequantize", axis=1)
        return Product(graph.node("MatMul", [x, weights], name), _float_bias(graph, name, bias, TensorProto.FLOAT))


def float_array(values: np.ndarray, elem_type: int, name: str) -> np.ndarray:
    """`values` in the graph's float type. Raises ModelError for what does not fit in it."""
    if elem_type == TensorProto.FLOAT:
        return np.ascontiguousarray(values, np.float32)
    with np.errstate(over="ignore"):
        halves = np.ascontiguousarray(values, np.float16)
    if not np.isfinite(halves).all():
        raise ModelError(f"{name} holds {np.abs(values).max():g}, too large for fp16; export fp32 or int8 instead")
    return halves


def _float_bias(graph: Graph, name: str, bias: np.ndarray | None, elem_type: int) -> str:
    return "" if bias is None else graph.constant(f"{name}.bias", float_array(bias, elem_type, name))
