"""Rounding weights to an export's grid and back: the values the runtime will compute with."""

import numpy as np

from edgeft.quant import ggml
from edgeft.quant.ggml import GgmlType
from edgeft.quant.grids import onnx
from edgeft.quant.grids.onnx import MatMulNBits

Grid = GgmlType | MatMulNBits
"""One of llama.cpp's types, or a grid of onnxruntime's MatMulNBits."""


def round_rows(rows: np.ndarray, grid: Grid, importance: np.ndarray | None = None) -> np.ndarray:
    """`rows` float32 (n, cols), there and back: bit for bit what llama.cpp (a GgmlType) or onnxruntime (MatMulNBits)
    dequantize from the exported file, float32 (n, cols).

    `importance` float32 (cols,) is what the export hands ggml; MatMulNBits has no use for it. Raises ValueError when
    rows do not divide into blocks or are not finite. ggml gives the GIL back, so that threads may share the rows.
    """
    cols = rows.shape[1]
    if isinstance(grid, MatMulNBits):
        return onnx.dequantize(onnx.quantize(rows, grid), grid, cols)
    return ggml.dequantize(ggml.quantize(rows, grid, importance), grid, cols)
