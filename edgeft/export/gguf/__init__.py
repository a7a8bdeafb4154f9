"""GGUF files for llama.cpp, written straight from safetensors.

`write_gguf` makes a file of any of FTYPES in one pass over the weights; `quantize_gguf` makes a smaller file of
one that is there, through llama.cpp's own program. Each architecture has one file under `architectures/` that
says what its file holds.
"""

from edgeft.export.gguf.quantize import quantize_gguf
from edgeft.export.gguf.tensor_types import FLOAT_FTYPES, FTYPES
from edgeft.export.gguf.write import write_gguf

__all__ = ["FLOAT_FTYPES", "FTYPES", "quantize_gguf", "write_gguf"]
