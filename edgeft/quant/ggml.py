"""llama.cpp's own quantizers: ggml's C functions, from the libggml-base that llama-cpp-python ships.

Arrays are C-contiguous, a row of weights to a row of packed bytes: float32 (n, cols) and uint8 (n, row_bytes).
ctypes gives the GIL back during a call and ggml keeps nothing between calls but tables made once under a lock of
its own, so every function may run in several threads. Rows are independent: any split of a matrix into rows
gives the same bytes.

The library is loaded at the first use, without importing llama_cpp, and tested before anything relies on it.
"""

import ctypes
import importlib.util
import sys
from ctypes import POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as GgmlType

from edgeft.errors import MissingExtra, RuntimeFault

__all__ = [
    "GgmlType", "block_size", "dequantize", "is_finite", "needs_importance", "quantize", "row_bytes", "self_test",
]  # fmt: skip

KNOWN_MAJOR = 0
LIBRARY_NAMES = {"darwin": "libggml-base.dylib", "win32": "ggml-base.dll"}
TESTED_TYPES = (
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4",
)  # fmt: skip
"""Types whose number, name, block and bytes must be those gguf-py knows."""


class _Traits(ctypes.Structure):
    """`struct ggml_type_traits` of ggml.h."""

    _fields_ = (
        ("type_name", c_char_p),
        ("blck_size", c_int64),
        ("blck_size_interleave", c_int64),
        ("type_size", c_size_t),
        ("is_quantized", c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int64)),
        ("from_float_ref", c_void_p),
    )


def quantize(rows: np.ndarray, kind: GgmlType, importance: np.ndarray | None = None) -> np.ndarray:
    """`rows` float32 (n, cols) in the type `kind`: uint8 (n, row_bytes).

    `importance` float32 (cols,) weighs the squared error of each column. `cols` must divide into blocks of
    `kind`, the values must be finite, and some types cannot do without importance (`needs_importance`); ggml
    would end the process, so these raise ValueError.
    """
    n_rows, n_cols = rows.shape
    if importance is None and needs_importance(kind):
        raise ValueError(f"{kind.name} needs importance")
    if importance is not None:
        importance = _float32(importance)
        if importance.shape != (n_cols,):
            raise ValueError(f"importance of shape {importance.shape} for rows of {n_cols}")
    rows = _float32(rows)
    if not is_finite(rows, GgmlType.F32):
        raise ValueError("weights are not finite")
    packed = np.empty((n_rows, row_bytes(kind, n_cols)), np.uint8)
    weights = None if importance is None else importance.ctypes.data
    _library().ggml_quantize_chunk(int(kind), rows.ctypes.data, packed.ctypes.data, 0, n_rows, n_cols, weights)
    return packed


def dequantize(data: np.ndarray, kind: GgmlType, cols: int) -> np.ndarray:
    """The float32 values (n, cols) of `data` uint8 (n, row_bytes), by ggml's own `to_float`.

    Raises ValueError when the rows of `data` are not as long as `cols` values take.
    """
    if data.shape[1] != row_bytes(kind, cols):
        raise ValueError(f"rows of {data.shape[1]} bytes for {cols} values of {kind.name}")
    data = np.ascontiguousarray(data)
    if kind == GgmlType.F32:
        return data.view(np.float32).copy()
    rows = np.empty((len(data), cols), np.float32)
    _library().ggml_get_type_traits(int(kind)).contents.to_float(data.ctypes.data, rows.ctypes.data, rows.size)
    return rows


def is_finite(data: np.ndarray, kind: GgmlType) -> bool:
    """Whether every value, or every scale, in the contiguous `data` is finite (ggml_validate_row_data)."""
    return bool(_library().ggml_validate_row_data(int(kind), data.ctypes.data, data.nbytes))


def row_bytes(kind: GgmlType, cols: int) -> int:
    """Bytes of a row of `cols` values. Raises ValueError when they do not divide into blocks."""
    n_block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    if cols % n_block:
        raise ValueError(f"{cols} values do not divide into blocks of {n_block} ({kind.name})")
    return cols // n_block * n_bytes


def block_size(kind: GgmlType) -> int:
    """Values in one block of `kind`; 1 for the float types."""
    return gguf.GGML_QUANT_SIZES[kind][0]


def needs_importance(kind: GgmlType) -> bool:
    """Whether ggml cannot quantize to `kind` without importance."""
    return bool(_library().ggml_quantize_requires_imatrix(int(kind)))


def self_test() -> None:
    """Load and test the library now rather than at the first use; see `_library` for what is raised."""
    _library()


@cache
def _library() -> ctypes.CDLL:
    """libggml-base, declared and tested.

    Raises MissingExtra without llama-cpp-python; RuntimeFault when the library cannot be loaded, is of another
    major version, numbers its types otherwise or packs a known block in another way.
    """
    path = _library_path()
    try:
        library = _declared(ctypes.CDLL(str(path)))
    except (OSError, AttributeError) as error:
        raise RuntimeFault(
            f"{path}: not the ggml that edgeft knows ({error}); install llama-cpp-python again"
        ) from None
    version = library.ggml_version().decode()
    problem = _abi_problem(library, version)
    if problem:
        raise RuntimeFault(
            f"{path}: ggml {version} is not the library edgeft knows: {problem}; "
            "install the version of llama-cpp-python that constraints.txt names"
        )
    return library


def _library_path() -> Path:
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        raise MissingExtra("llama-cpp-python is not installed; pip install 'edgeft[gguf]'")
    return Path(found.origin).parent / "lib" / LIBRARY_NAMES.get(sys.platform, "libggml-base.so")


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """The functions used here with their C types (ggml.h). Raises AttributeError when one is missing."""
    for name, result, arguments in (
        ("ggml_version", c_char_p, []),
        ("ggml_get_type_traits", POINTER(_Traits), [c_int]),
        ("ggml_quantize_requires_imatrix", c_bool, [c_int]),
        ("ggml_quantize_chunk", c_size_t, [c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p]),
        ("ggml_validate_row_data", c_bool, [c_int, c_void_p, c_size_t]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _abi_problem(library: ctypes.CDLL, version: str) -> str | None:
    """What shows that the library is another than the one this module was written for; None when nothing does."""
    if version.partition(".")[0] != str(KNOWN_MAJOR):
        return f"its major version is not {KNOWN_MAJOR}"
    for name in TESTED_TYPES:
        traits = library.ggml_get_type_traits(int(GgmlType[name])).contents
        sizes = (traits.blck_size, traits.type_size)
        if traits.type_name.decode().upper() != name or sizes != gguf.GGML_QUANT_SIZES[GgmlType[name]]:
            return f"its type {int(GgmlType[name])} is {traits.type_name.decode()} with {sizes}, not {name}"
    rows, weights = _known_blocks(), np.ones(32, np.float32)
    expected = np.stack([_q8_0(block) for block in rows])
    packed = np.zeros_like(expected)
    arguments = (rows.ctypes.data, packed.ctypes.data, 0, len(rows), rows.shape[1], weights.ctypes.data)
    if library.ggml_quantize_chunk(int(GgmlType.Q8_0), *arguments) != expected.nbytes:
        return "it packs Q8_0 in another number of bytes"
    if not np.array_equal(packed, expected):
        return "it packs a known Q8_0 block otherwise"
    values = np.zeros_like(rows)
    library.ggml_get_type_traits(int(GgmlType.Q8_0)).contents.to_float(
        packed.ctypes.data, values.ctypes.data, rows.size
    )
    steps = np.abs(rows).max(axis=1, keepdims=True) / 127
    return None if (np.abs(values - rows) <= 0.51 * steps).all() else "it reads a known Q8_0 block otherwise"


def _known_blocks() -> np.ndarray:
    """Two blocks (2, 32) whose largest value is 127 steps of a power of two, and no value half-way between steps."""
    steps = np.arange(-64, 64, 4, dtype=np.float32) + np.float32(0.25)
    steps[7] = 127.0
    return np.stack([steps / 64, steps / -1024])


def _q8_0(block: np.ndarray) -> np.ndarray:
    """32 values as ggml's block_q8_0: a float16 scale, the largest magnitude / 127, and 32 int8 multiples of it."""
    scale = np.abs(block.astype(np.float64)).max() / 127
    multiples = np.rint(block / scale).astype(np.int8)
    return np.concatenate([np.array([scale], np.float16).view(np.uint8), multiples.view(np.uint8)])


def _float32(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)
