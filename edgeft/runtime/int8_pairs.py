"""Which int8 products of an ONNX file 16 bits cannot hold.

On x86 processors without VNNI onnxruntime multiplies uint8 inputs by int8 weights with `vpmaddubsw`, which adds the
products of two neighbouring rows and cuts the sum to 16 bits. Nothing is lost where codes of the same sign in rows 2i
and 2i + 1 add up to at most `PAIR_LIMIT`, whatever the inputs: 255 * 128 = 32640 of 32767. edgeft writes such weights
by default (`edgeft.export.onnx.int8_columns`); older files and those of other tools need not be like that. For them
onnxruntime has a slower way, uint8 weights in sums of 32 bits (`session.x64quantprecision`), which it takes for most
operators.

Shapes: K inputs (rows), N outputs (columns) of a matrix.
"""

import platform
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeft.machine.instruction_sets import instruction_sets
from edgeft.runtime.onnx_file import NodeInfo, OnnxFile, TensorInfo

PAIR_LIMIT = 128
SAFE = 64
"""No pair of codes up to here is too large, whichever two are added: what holds for kernels of convolutions."""
INT8 = 3
"""`TensorProto.DataType`."""
MATRICES = {
    "DynamicQuantizeMatMul": (1,), "MatMulInteger": (1,), "MatMulIntegerToFloat": (1,), "QAttention": (1,),
    "QLinearMatMul": (3,), "QGemm": (3,), "QLinearConv": (3,), "DynamicQuantizeLSTM": (1, 2),
}  # fmt: skip
"""Operator -> the places of its int8 weights."""
ROWS_FIRST = ("DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QAttention", "QLinearMatMul", "MatMul")
"""Operators whose weights are (…, K, N), so that it is known which codes make a pair."""
FLOATS = ("MatMul", "Gemm", "Conv")
"""Made into integer operators where both sides are dequantized."""
ALWAYS_SHORT = ("QLinearMatMul",)
"""For these onnxruntime takes no slower way."""
CHUNK_CODES = 2**20
"""Codes looked at in one go."""
WIDE_SUMS = ("avx512_vnni", "avx_vnni", "amx_int8")
"""Instruction sets that add int8 products in 32 bits."""
X86 = ("x86_64", "amd64", "i686", "i386")


@dataclass(frozen=True)
class Overflow:
    """Weights whose products can be cut."""

    weights: tuple[str, ...]
    n_products: int
    """All int8 products of the file."""
    avoidable: bool
    """Whether onnxruntime has a slower way for all of them."""

    def __str__(self) -> str:
        products = f"{len(self.weights)} of {self.n_products} int8 products"
        return f"the sums of {products} need more than 16 bits, which processors without VNNI cut"


def adds_in_16_bits(present: Collection[str] | None = None, machine: str | None = None) -> bool:
    """Whether onnxruntime cuts int8 sums to 16 bits here: on an x86 processor that is not known to have VNNI.

    `present` are its instruction sets, `machine` is what `platform.machine` says; None: of this one.
    """
    if (machine or platform.machine()).lower() not in X86:
        return False
    return not set(instruction_sets() if present is None else present).intersection(WIDE_SUMS)


def find_overflow(file: OnnxFile) -> Overflow | None:
    """The int8 weights of `file` that need more than 16 bits; None where there are none.

    Weights whose numbers cannot be read in one piece count as such, and so do convolutions, and matrices multiplied
    from the other side, with a code beyond `SAFE`.
    """
    tensors = {tensor.name: tensor for tensor in file.tensors if tensor.kind == INT8}
    weights = list(dict.fromkeys(_weights(file, tensors)))
    found = [(op, name) for op, name in weights if _too_large(file.path, tensors[name], op in ROWS_FIRST)]
    if not found:
        return None
    avoidable = not any(op in ALWAYS_SHORT for op, _ in found)
    return Overflow(tuple(name for _, name in found), len(weights), avoidable)


def exceeds_pairs(codes: np.ndarray) -> bool:
    """Whether any two int8 codes (…, K, N) of the same sign in rows 2i and 2i + 1 add up to more than `PAIR_LIMIT`."""
    whole = codes[..., : codes.shape[-2] // 2 * 2, :]
    step = 2 * max(1, CHUNK_CODES // (2 * codes.shape[-1]))
    for at in range(0, whole.shape[-2], step):
        part = whole[..., at : at + step, :].astype(np.int16)
        sums = part[..., 0::2, :] + part[..., 1::2, :]  # of codes with different signs it is never beyond the limit
        if sums.max() > PAIR_LIMIT or sums.min() < -PAIR_LIMIT:
            return True
    return False


def _weights(file: OnnxFile, tensors: dict[str, TensorInfo]) -> Iterator[tuple[str, str]]:
    """(operator, name) of every int8 tensor that an integer product takes."""
    nodes = [*file.nodes, *file.inner_nodes]
    makers = {output: node for node in nodes for output in node.outputs}
    for node in nodes:
        for place in MATRICES.get(node.op, ()):
            if len(node.inputs) > place and node.inputs[place] in tensors:
                yield node.op, node.inputs[place]
        if node.op in FLOATS and len(node.inputs) > 1:
            left, right = (_dequantized(value, makers) for value in node.inputs[:2])
            if left and right and right.inputs[0] in tensors:
                turned = makers[node.inputs[1]].op == "Transpose"
                yield "Gemm" if turned else node.op, right.inputs[0]


def _dequantized(value: str, makers: dict[str, NodeInfo]) -> NodeInfo | None:
    """The DequantizeLinear that made `value`, with a Transpose behind it or not."""
    node = makers.get(value)
    if node and node.op == "Transpose":
        node = makers.get(node.inputs[0])
    return node if node and node.op == "DequantizeLinear" else None


def _too_large(path: Path, tensor: TensorInfo, rows_first: bool) -> bool:
    codes = _read(path, tensor)
    if codes is None:
        return True
    if rows_first and codes.ndim >= 2:
        return exceeds_pairs(codes)
    return bool(codes.max(initial=0) > SAFE or codes.min(initial=0) < -SAFE)


def _read(path: Path, tensor: TensorInfo) -> np.ndarray | None:
    n_codes = int(np.prod(tensor.shape))
    if tensor.location:
        flat = np.fromfile(path.parent / tensor.location, np.int8, n_codes, offset=tensor.offset)
    elif tensor.raw is not None:
        flat = np.frombuffer(tensor.raw, np.int8)
    else:
        return None
    return flat.reshape(tensor.shape) if len(flat) == n_codes else None
