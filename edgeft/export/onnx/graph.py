"""An ONNX graph in the making: nodes, small constants, and weights whose bytes lie in a file beside the graph.

Weights are only announced here, in the order in which they lie in that file; `edgeft.export.onnx.data_file` fills
it. Two announcements may share bytes: a tied embedding is stored once and read under two types.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 21, 10
"""What onnxruntime 1.20 reads, the oldest supported."""
MICROSOFT = "com.microsoft"
CONTRIBUTED = {
    "BiasGelu", "DynamicQuantizeMatMul", "FastGelu", "FusedMatMul", "GatherBlockQuantized", "GroupQueryAttention",
    "MatMulNBits", "MoE", "MultiHeadAttention", "QMoE", "QuickGelu", "RotaryEmbedding", "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
}  # fmt: skip
"""Operators of onnxruntime's own domain. (Its SimplifiedLayerNormalization is in the standard one.)"""
PAGE_BYTES, LINE_BYTES = 4096, 64
"""A tensor begins at a memory page, so that it can be mapped, a small one at a cache line."""

FLOATS: dict[int, np.dtype[Any]] = {TensorProto.FLOAT: np.dtype(np.float32), TensorProto.FLOAT16: np.dtype(np.float16)}
BITS: dict[int, int] = {TensorProto.FLOAT: 32, TensorProto.FLOAT16: 16, TensorProto.UINT8: 8, TensorProto.UINT4: 4}


Branch = Callable[["Graph"], Sequence[tuple[str, int]]]
"""Adds the nodes of one branch of an If to its graph; returns the values it gives and their types."""


@dataclass(frozen=True)
class Slot:
    """Where a weight lies in the data file."""

    name: str
    elem_type: int
    shape: tuple[int, ...]
    start: int
    """Byte offset."""

    @property
    def n_bytes(self) -> int:
        """Of the whole tensor; two 4-bit numbers share a byte, row after row without a gap."""
        return -(-math.prod(self.shape) * BITS[self.elem_type] // 8)


class Graph:
    """Collects nodes; `model` makes the ONNX file of them."""

    def __init__(self, data_file: str, prefix: str = "") -> None:
        """`data_file` is the name of the file with the weights, beside the graph's own; names of nodes get `prefix`."""
        self.data_file, self._prefix = data_file, prefix
        self.n_data_bytes = 0
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._tensors: dict[str, TensorProto] = {}

    def node(
        self, op: str, inputs: Sequence[str], name: str, *, outputs: Sequence[str] | None = None, **attributes: Any
    ) -> str:
        """Add a node; returns its first output, `<name>.output` unless `outputs` are named. "" is left out, at the end
        altogether."""
        inputs, name = list(inputs), self._prefix + name
        while inputs and not inputs[-1]:
            inputs.pop()
        outputs = outputs or [f"{name}.output"]
        domain = MICROSOFT if op in CONTRIBUTED else ""
        self._nodes.append(helper.make_node(op, inputs, outputs, name=name, domain=domain, **attributes))
        return outputs[0]

    def choose(self, condition: str, name: str, then: Branch, otherwise: Branch) -> list[str]:
        """Add an If: the values that `then` makes where `condition` (one bool) holds, else those of `otherwise`."""
        branches: dict[str, onnx.GraphProto] = {}
        for key, branch in (("then", then), ("else", otherwise)):
            inner = Graph(self.data_file, f"{name}.{key}.")
            inner._tensors = self._tensors  # a branch reads what stands around it
            made = [helper.make_tensor_value_info(value, kind, None) for value, kind in branch(inner)]
            branches[f"{key}_branch"] = helper.make_graph(inner._nodes, f"{name}.{key}", [], made)
        outputs = [f"{name}.{number}" for number in range(len(branches["then_branch"].output))]
        self.node("If", [condition], name, outputs=outputs, **branches)
        return outputs

    def input(self, name: str, elem_type: int, shape: Sequence[int | str]) -> str:
        """Declare an input; a dimension with a name may be any."""
        self._inputs.append(helper.make_tensor_value_info(name, elem_type, shape))
        return name

    def output(self, name: str, elem_type: int, shape: Sequence[int | str]) -> None:
        """Declare the value `name` an output."""
        self._outputs.append(helper.make_tensor_value_info(name, elem_type, shape))

    def rename(self, value: str, name: str) -> None:
        """Call the output of an earlier node, which none takes yet, `name`."""
        node = next(node for node in reversed(self._nodes) if value in node.output)
        node.output[list(node.output).index(value)] = name

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        """A small tensor, stored in the graph itself; one `name` stands for one value."""
        if name not in self._tensors:
            self._tensors[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def optional_input(self, name: str, default: np.ndarray) -> str:
        """An input that a caller may leave out: `default` stands for it."""
        self.input(name, helper.np_dtype_to_tensor_dtype(default.dtype), default.shape)
        return self.constant(name, default)

    def weight(self, name: str, elem_type: int, shape: Sequence[int]) -> Slot:
        """Announce a tensor of the data file."""
        start = padded(self.n_data_bytes, LINE_BYTES)
        slot = Slot(name, elem_type, tuple(shape), start)
        if slot.n_bytes >= PAGE_BYTES:
            slot = Slot(name, elem_type, tuple(shape), padded(start, PAGE_BYTES))
        self.n_data_bytes = slot.start + slot.n_bytes
        self._refer(slot)
        return slot

    def view(self, of: Slot, name: str, elem_type: int, shape: Sequence[int]) -> str:
        """The bytes of another tensor once more, under another type and shape; returns `name`."""
        slot = Slot(name, elem_type, tuple(shape), of.start)
        assert slot.n_bytes == of.n_bytes, f"{name} is no view of {of.name}"
        self._refer(slot)
        return name

    def model(self, name: str, producer: tuple[str, str], metadata: dict[str, str]) -> onnx.ModelProto:
        """The whole graph, called `name`; `producer` is a name and a version."""
        graph = helper.make_graph(
            self._nodes, name, self._inputs, self._outputs, initializer=list(self._tensors.values())
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        model.producer_name, model.producer_version = producer
        helper.set_model_props(model, metadata)
        return model

    def _refer(self, slot: Slot) -> None:
        assert slot.name not in self._tensors, f"{slot.name} is there already"
        tensor = TensorProto(name=slot.name, data_type=slot.elem_type, dims=slot.shape)
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": self.data_file, "offset": slot.start, "length": slot.n_bytes}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        self._tensors[slot.name] = tensor


def padded(n_bytes: int, multiple: int) -> int:
    """`n_bytes` rounded up."""
    return -(-n_bytes // multiple) * multiple
