"""The tensors of a GGUF file as float32, whole or a few rows at a time."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeft.errors import ModelError
from edgeft.quant import ggml
from edgeft.runtime.gguf_format import Header
from edgeft.runtime.header import check_gguf

BLOCK_WEIGHTS = 1 << 20
"""About as many weights are dequantized at once: 4 MB of float32."""


@dataclass(frozen=True)
class GgufFile:
    """A checked file and its header. It is read, not mapped: mapped pages would count as this process's memory."""

    header: Header

    def read(self, name: str) -> np.ndarray:
        """The tensor `name` dequantized by ggml's own code: float32, in the shape the header gives (rows first).

        Raises ModelError for a type ggml cannot turn into floats.
        """
        shape = self.header.tensors[name].shape
        whole = np.empty((math.prod(shape[:-1]), math.prod(shape[-1:])), np.float32)
        for first, rows in self.blocks(name):
            whole[first : first + len(rows)] = rows
        return whole.reshape(shape)

    def blocks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """The tensor a few rows at a time: the number of the first, and the rows, float32 (n, cols). See `read`."""
        tensor = self.header.tensors[name]
        if tensor.type_name not in ggml.TESTED_TYPES:
            raise ModelError(f"{self.header.path}: {name} is stored as {tensor.type_name}, which cannot be dequantized")
        kind, cols = ggml.GgmlType(tensor.kind), math.prod(tensor.shape[-1:])
        row_bytes, n_rows = ggml.row_bytes(kind, cols), math.prod(tensor.shape[:-1])
        step = max(1, BLOCK_WEIGHTS // max(1, cols))
        for first in range(0, n_rows, step):
            n = min(step, n_rows - first)
            packed = np.fromfile(self.header.path, np.uint8, n * row_bytes, offset=tensor.start + first * row_bytes)
            if packed.size != n * row_bytes:
                raise ModelError(f"{self.header.path}: became shorter while it was read; copy it again")
            yield first, ggml.dequantize(packed.reshape(n, row_bytes), kind, cols)


def open_gguf(path: Path) -> GgufFile:
    """Open the model file `path` for reading. Raises ModelError when it is damaged (see `check_gguf`)."""
    return GgufFile(check_gguf(path))
