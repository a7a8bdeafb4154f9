"""An ONNX folder as a form of the model, in onnxruntime."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx

from edgeft.parity.forms import DEFAULT_N_CTX, FormSource, RuntimeForm
from edgeft.runtime.onnx import OnnxModel
from edgeft.runtime.onnx_file import check_onnx, find_file

FAMILIES = {"fp32": "f16", "fp16": "f16", "int8": "q8_0", "int4": "q4"}
"""Which limits a graph is judged by, those of GGUF files of as many bits."""


def onnx_form(name: str, path: Path, n_threads: int | None = None, providers: Sequence[str] = ()) -> FormSource:
    """The ONNX file or folder `path` in onnxruntime."""
    return FormSource(name, lambda n_ctx: OnnxForm(path, n_ctx, n_threads, providers))


def precision_of(nodes: Iterable[onnx.NodeProto], *, half: bool) -> str:
    """`fp32`, `fp16`, `int8` or `int4`: of the matrices with the fewest bits."""
    bits = {16 if half else 32}
    for node in nodes:
        if node.op_type == "MatMulNBits":
            bits.add(next((attribute.i for attribute in node.attribute if attribute.name == "bits"), 4))
        elif node.op_type in ("MatMulInteger", "QLinearMatMul", "DynamicQuantizeMatMul"):
            bits.add(8)
    fewest = min(bits)
    return f"{'int' if fewest <= 8 else 'fp'}{fewest}"


class OnnxForm(RuntimeForm):
    """An ONNX folder in onnxruntime."""

    def __init__(self, path: Path, n_ctx: int, n_threads: int | None, providers: Sequence[str]) -> None:
        """Raises what `OnnxModel` raises."""
        file, _ = find_file(path)
        check_onnx(file)
        graph = onnx.load(file, load_external_data=False).graph
        half = graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
        model = OnnxModel(path, n_ctx=n_ctx or DEFAULT_N_CTX, n_threads=n_threads, providers=providers)
        super().__init__(model, FAMILIES[precision_of(graph.node, half=half)], model.special_ids())
