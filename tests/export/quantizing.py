"""llama.cpp's own `llama_model_quantize`: the oracle for what our files hold."""

import ctypes
import os
import re
from collections.abc import Mapping
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

from edgeft.export.gguf.tensor_types import file_type

SILENT = llama_cpp.llama_log_callback(lambda *_: None)
NEEDS_IMPORTANCE = "will require an imatrix"
# "[   3/  12]            blk.0.attn_q.weight - [256, 2, 1, 1], type =    f32, size = … MiB -> … MiB (q4_K)"
DRY_RUN_LINE = re.compile(r"\] +(\S+) +- \[.*?type = +(\w+), size =[^(\n]*(?:\((\w+)\))?")


def llama_quantize(src: Path, out: Path, ftype: str, importance: Mapping[str, np.ndarray] | None = None) -> Path:
    """Quantize the GGUF file `src` to `out` with one thread; `importance` is float32 by tensor name."""
    _run(src, out, ftype, importance)
    return out


def llama_types(
    src: Path, ftype: str, importance: Mapping[str, np.ndarray] | None = None
) -> tuple[dict[str, str], bool]:
    """The type each tensor would get, by llama.cpp's dry run, and whether it would ask for an importance matrix."""
    text = _run(src, src, ftype, importance, dry_run=True)
    found = {name: (after or before).upper() for name, before, after in DRY_RUN_LINE.findall(text)}
    return found, NEEDS_IMPORTANCE in text


def _run(
    src: Path, out: Path, ftype: str, importance: Mapping[str, np.ndarray] | None, *, dry_run: bool = False
) -> str:
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.dry_run = file_type(ftype), 1, dry_run
    if importance is not None:
        entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
        held = {name: np.ascontiguousarray(values, np.float32) for name, values in importance.items()}
        for entry, (name, values) in zip(entries, held.items(), strict=False):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
    lines: list[str] = []
    collect = llama_cpp.llama_log_callback(lambda _, text, __: lines.append(text.decode()))
    llama_cpp.llama_log_set(collect, ctypes.c_void_p(0))
    status = llama_cpp.llama_model_quantize(os.fsencode(src), os.fsencode(out), ctypes.byref(params))
    llama_cpp.llama_log_set(SILENT, ctypes.c_void_p(0))
    assert status == 0, "".join(lines)
    return "".join(lines)


def types_of(path: Path) -> dict[str, str]:
    """The type of every tensor of a GGUF file."""
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def assert_same_tensors(ours: Path, theirs: Path) -> None:
    """Every tensor of both files has the same name, shape, type and bytes."""
    one, other = ({tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors} for path in (ours, theirs))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.tensor_type == other[name].tensor_type, name
        assert tensor.shape.tolist() == other[name].shape.tolist(), name
        assert tensor.data.tobytes() == other[name].data.tobytes(), name
