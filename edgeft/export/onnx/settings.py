"""How one ONNX folder is made: what a user may choose."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from edgeft.errors import UsageError
from edgeft.export.onnx.architectures.base import Decoder
from edgeft.export.onnx.experts import DOWN, GATE_UP, ROUTER
from edgeft.quant.grids.onnx import MatMulNBits, Packed

Dtype = Literal["int4", "int8", "fp16", "fp32"]
Layout = Literal["plain", "genai", "transformers.js"]
DTYPES: dict[str, int] = {"int4": 4, "int8": 8, "fp16": 16, "fp32": 32}
"""Bits of a weight."""
LAYOUTS = ("plain", "genai", "transformers.js")
EMBEDDINGS = ("token_embd.weight", "output.weight")

Rounder = Callable[[str, np.ndarray, MatMulNBits], Packed]
"""(name as in a GGUF file, rows float32 (n, cols), grid) -> the operator's tensors. Called from several threads,
with some of a matrix's rows at a time."""

OLDEST = (1, 20)
ATTENTION_BIAS_SINCE = (1, 22)
"""From here on GroupQueryAttention takes the bias that windows are made with."""
EIGHT_BITS_SINCE = (1, 23)
"""From here on MatMulNBits and GatherBlockQuantized have 8 bits on the CPU."""
EXPERTS_SINCE = (1, 31)
"""Here QMoE multiplies by packed weights; older ones lack zero points, and make floats of the weights each time."""


@dataclass(frozen=True)
class OnnxSettings:
    """One entry of `export.onnx`. Raises UsageError for values that do not exist."""

    dtype: Dtype = "int4"
    """Of the matrices: int4 and int8 are MatMulNBits' blocks, their scales and everything else float32."""
    block_size: int = 32
    """Weights that share a scale."""
    symmetric: bool = True
    """Without zero points."""
    accuracy_level: Literal[0, 1, 2, 3, 4] = 4
    """MatMulNBits': 4 multiplies in int8, 1 in float32; 0 leaves it to onnxruntime."""
    head_dtype: Dtype | None = None
    """Of embedding and head; None: `dtype`."""
    activations: Literal["float32", "float16"] = "float32"
    """What int4 and int8 graphs compute in; fp16 graphs compute in float16."""
    layout: Layout = "genai"
    min_ort: str | None = None
    """The oldest onnxruntime that must run the graph; None: the oldest that can."""
    grids: Mapping[str, MatMulNBits | None] = field(default_factory=dict)
    """Of single matrices, by GGUF name; None: floats."""
    rounder: Rounder | None = None
    """None: to the nearest."""

    def __post_init__(self) -> None:
        for dtype in (self.dtype, self.head_dtype or self.dtype):
            if dtype not in DTYPES:
                raise UsageError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
        if self.layout not in LAYOUTS:
            raise UsageError(f"unknown layout {self.layout!r}; known: {', '.join(LAYOUTS)}")
        if self.block_size < 16 or self.block_size & (self.block_size - 1):
            raise UsageError(f"block_size {self.block_size}: give a power of two from 16 on, such as 32, 64 or 128")

    @property
    def half(self) -> bool:
        """Whether the graph computes in float16."""
        return self.dtype == "fp16" or (DTYPES[self.dtype] <= 8 and self.activations == "float16")

    @property
    def name(self) -> str:
        """As the folder is called: `int4-32`, `int4-128-asymmetric`, `fp16`."""
        if DTYPES[self.dtype] > 8:
            return self.dtype
        words = [self.dtype, str(self.block_size)]
        words += ["asymmetric"] * (not self.symmetric) + ["fp16"] * self.half
        return "-".join(words + [f"head-{self.head_dtype}"] * (self.head_dtype not in (None, self.dtype)))

    def grid(self, tensor: str, n_cols: int) -> MatMulNBits | None:
        """The grid of a matrix with rows of `n_cols`; None where it stays floats.

        Embedding and head get blocks that rows divide into, an even number of them where two zero points share a
        byte: so GatherBlockQuantized can read what MatMulNBits multiplies by. Rows of experts must divide as well;
        what chooses between them stays floats.
        """
        if tensor in self.grids:
            return self.grids[tensor]
        shared = tensor in EMBEDDINGS
        bits = DTYPES[self.head_dtype or self.dtype] if shared else DTYPES[self.dtype]
        role = tensor.removesuffix(".weight").rpartition(".")[2]
        if bits > 8 or role == ROUTER:
            return None
        block_size = self.block_size
        step = 2 if shared and not self.symmetric and bits == 4 else 1
        while (shared or role in (GATE_UP, DOWN)) and n_cols % (block_size * step) and block_size >= 16:
            block_size //= 2
        return MatMulNBits(bits, block_size, self.symmetric) if block_size >= 16 else None

    def oldest_ort(self, decoder: Decoder) -> tuple[int, int]:
        """The oldest onnxruntime that runs this graph of `decoder`, or the newer one asked for.

        Raises UsageError when an older one is asked for.
        """
        reasons = {OLDEST: "the operators"}
        if any(layer.window for layer in decoder.layers):
            reasons[ATTENTION_BIAS_SINCE] = "sliding windows"
        if decoder.n_experts:
            reasons[EXPERTS_SINCE] = "experts"
        bits = {grid.bits for grid in self.grids.values() if grid} | {DTYPES[self.dtype]}
        if 8 in bits | {DTYPES[self.head_dtype or self.dtype]}:
            reasons[EIGHT_BITS_SINCE] = "8 bits"
        needed = max(reasons)
        if self.min_ort is None:
            return needed
        try:
            major, minor = (int(part) for part in self.min_ort.split(".")[:2])
        except ValueError:
            raise UsageError(f"min_ort {self.min_ort!r} is no version; write it as 1.22") from None
        if (major, minor) < needed:
            raise UsageError(
                f"min_ort {self.min_ort}: {reasons[needed]} need onnxruntime {needed[0]}.{needed[1]} or newer; "
                "raise min_ort, or export another dtype"
            )
        return major, minor
