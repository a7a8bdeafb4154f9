"""The tensors of a GGUF file as float32, one at a time."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeft.errors import ModelError
from edgeft.quant import ggml
from edgeft.runtime.gguf_format import Header
from edgeft.runtime.header import check_gguf


@dataclass(frozen=True)
class GgufFile:
    """A checked file: its header, and its bytes mapped."""

    header: Header
    data: np.ndarray

    def read(self, name: str) -> np.ndarray:
        """The tensor `name` dequantized by ggml's own code: float32, in the shape the header gives (rows first).

        Raises ModelError for a type ggml cannot turn into floats.
        """
        tensor = self.header.tensors[name]
        if tensor.type_name not in ggml.TESTED_TYPES:
            raise ModelError(f"{self.header.path}: {name} is stored as {tensor.type_name}, which cannot be dequantized")
        kind, cols = ggml.GgmlType(tensor.kind), tensor.shape[-1]
        packed = self.data[tensor.start : tensor.start + tensor.n_bytes].reshape(-1, ggml.row_bytes(kind, cols))
        return ggml.dequantize(packed, kind, cols).reshape(tensor.shape)


def open_gguf(path: Path) -> GgufFile:
    """Open the model file `path` for reading. Raises ModelError when it is damaged (see `check_gguf`)."""
    header = check_gguf(path)
    return GgufFile(header, np.memmap(path, np.uint8, mode="r"))
