"""GGUF files for llama.cpp, written straight from safetensors.

`write_gguf` makes a file in F32, F16 or BF16; `quantize_gguf` makes a smaller one of it with llama.cpp's own
quantizer. Each architecture has one file under `architectures/` that says what its file holds.
"""

from edgeft.export.gguf.quantize import QUANTIZED_FTYPES, quantize_gguf
from edgeft.export.gguf.write import WRITTEN_FTYPES, write_gguf

__all__ = ["QUANTIZED_FTYPES", "WRITTEN_FTYPES", "quantize_gguf", "write_gguf"]
