"""Rounding torch weights to an export's grid while the gradient passes as if nothing had happened."""

import numpy as np
import torch

from edgeft.errors import TrainingError
from edgeft.quant import ggml
from edgeft.quant.ggml import GgmlType
from edgeft.quant.grids import onnx
from edgeft.quant.grids.onnx import MatMulNBits

Grid = GgmlType | MatMulNBits
"""One of llama.cpp's types, or a grid of onnxruntime's MatMulNBits."""


def fake_quantize(weight: torch.Tensor, grid: Grid, importance: np.ndarray | None = None) -> torch.Tensor:
    """`weight` (…, cols) as the runtime will read it back after export: the same shape, dtype and device.

    Float32 values are bit for bit what llama.cpp (a GgmlType) or onnxruntime (MatMulNBits) dequantize from the
    exported file; in bfloat16 they are rounded once more. `importance` float32 (cols,) is what the export hands
    ggml; MatMulNBits has no use for it. The gradient of the result is that of `weight` (straight-through; Bengio
    et al. 2013). Raises TrainingError when weights are not finite, ValueError when rows do not divide into blocks.

    It runs on the CPU in every case: a scale search in another order of summation is another grid. On one core a
    matrix of 768 x 256 takes 13 ms in Q4_K, 7 in Q6_K and under 1 in Q4_0 and Q8_0; with importance 23, 13, 5
    and 1.
    """
    rounded: torch.Tensor = _StraightThrough.apply(weight, grid, importance)
    return rounded


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, weight: torch.Tensor, grid: Grid, importance: np.ndarray | None) -> torch.Tensor:
        rows = weight.detach().to("cpu", torch.float32).reshape(-1, weight.shape[-1]).numpy()
        if not np.isfinite(rows).all():
            raise TrainingError(
                f"weights of shape {tuple(weight.shape)} are not finite and cannot be rounded to {grid.name}; "
                "lower learning_rate"
            )
        values = torch.from_numpy(round_rows(rows, grid, importance))
        return values.reshape(weight.shape).to(weight.device, weight.dtype)

    @staticmethod
    def backward(ctx: object, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradients[0], None, None


def round_rows(rows: np.ndarray, grid: Grid, importance: np.ndarray | None = None) -> np.ndarray:
    """`rows` float32 (n, cols), finite, there and back: the values of the exported tensor, float32 (n, cols)."""
    cols = rows.shape[1]
    if isinstance(grid, MatMulNBits):
        return onnx.dequantize(onnx.quantize(rows, grid), grid, cols)
    return ggml.dequantize(ggml.quantize(rows, grid, importance), grid, cols)
