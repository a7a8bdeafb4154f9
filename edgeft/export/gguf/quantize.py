"""Smaller GGUF files of a GGUF file, made by llama.cpp's own quantizer: a model folder needs no such step."""

import ctypes
import os
import re
from pathlib import Path

from edgeft.artifact import writing
from edgeft.errors import RuntimeFault, UsageError
from edgeft.export.gguf.tensor_types import FTYPES, file_type
from edgeft.runtime.header import check_gguf
from edgeft.runtime.llama_build import start
from edgeft.runtime.llama_library import llama_cpp
from edgeft.runtime.llama_vocabulary import captured_log

FELL_BACK = re.compile(r"warning: (\S+) +- ncols.*?required for type +(\S+?)\).*?falling back to +(\S+)")


def quantize_gguf(src: Path, out: Path, ftype: str, *, n_threads: int | None = None) -> dict[str, str]:
    """Quantize the F32, F16 or BF16 file `src` to `out`; `n_threads` None means every core.

    Returns the tensors whose rows do not divide into blocks of their type, each with what llama.cpp took
    instead: `{"blk.0.attn_q.weight": "q4_K -> q5_0"}`. The same input gives the same bytes. Raises UsageError
    for an unknown ftype, ModelError when `src` is no GGUF file, RuntimeFault when llama.cpp refuses or fails.
    """
    if ftype not in FTYPES:
        raise UsageError(f"unknown ftype {ftype}; known: {', '.join(FTYPES)}")
    check_gguf(src)
    start()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type(ftype)
    params.nthread = n_threads or 0
    with writing(out) as temporary:
        with captured_log() as log:
            status = llama_cpp.llama_model_quantize(os.fsencode(src), os.fsencode(temporary), ctypes.byref(params))
        if status != 0:
            raise RuntimeFault(f"{src}: llama.cpp did not quantize it to {ftype}: {log.reason}")
        check_gguf(temporary)
    return {name: f"{wanted} -> {got}" for name, wanted, got in FELL_BACK.findall(log.text)}
