"""One matrix product of llama.cpp by itself: ggml's functions by their C interface, on weights of any bytes."""

import ctypes
from ctypes import CFUNCTYPE, POINTER, c_bool, c_char, c_char_p, c_int, c_int32, c_int64, c_size_t, c_void_p
from functools import cache
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from llama_cpp._ggml import libggml

from edgeft.runtime.llama_build import start

F32 = 0
REPACKED = "CPU_REPACK"
"""llama.cpp's name of the buffers that weights are laid out anew in, for the processor at hand."""


class Tensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml.h."""

    _fields_ = (
        ("type", c_int), ("buffer", c_void_p), ("ne", c_int64 * 4), ("nb", c_size_t * 4), ("op", c_int),
        ("op_params", c_int32 * 16), ("flags", c_int32), ("src", c_void_p * 10), ("view_src", c_void_p),
        ("view_offs", c_size_t), ("data", c_void_p), ("name", c_char * 64), ("extra", c_void_p),
    )  # fmt: skip


class Parameters(ctypes.Structure):
    """`struct ggml_init_params` of ggml.h."""

    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


def multiply(kind: GGMLQuantizationType, weights: np.ndarray, x: np.ndarray, *, repacked: bool) -> np.ndarray | None:
    """`x` float32 (T, K) times the transposed rows `weights` (N, blocks, bytes of a block), (T, N) float32.

    None when `repacked` and llama.cpp has no such layout for the type on this processor.
    """
    call, backend, layout = _functions(), _backend(), _repacked() if repacked else None
    if repacked and not layout:
        return None
    n_rows, n_blocks, _ = weights.shape
    held = [call["ggml_init"](Parameters(2**22, None, True)) for _ in range(2)]
    try:
        matrix = call["ggml_new_tensor_2d"](held[0], int(kind), n_blocks * GGML_QUANT_SIZES[kind][0], n_rows)
        if layout:
            call["ggml_backend_alloc_ctx_tensors_from_buft"](held[0], layout)
            if not Tensor.from_address(matrix).extra:
                return None
        else:
            call["ggml_backend_alloc_ctx_tensors"](held[0], backend)
        call["ggml_backend_tensor_set"](matrix, weights.ctypes.data, 0, weights.nbytes)
        put = call["ggml_new_tensor_2d"](held[1], F32, x.shape[1], len(x))
        product = call["ggml_mul_mat"](held[1], matrix, put)
        graph = call["ggml_new_graph"](held[1])
        call["ggml_build_forward_expand"](graph, product)
        call["ggml_backend_alloc_ctx_tensors"](held[1], backend)
        call["ggml_backend_tensor_set"](put, x.ctypes.data, 0, x.nbytes)
        assert call["ggml_backend_graph_compute"](backend, graph) == 0
        found = np.zeros((len(x), n_rows), np.float32)
        call["ggml_backend_tensor_get"](product, found.ctypes.data, 0, found.nbytes)
        return found
    finally:
        for context in held:
            call["ggml_free"](context)


@cache
def _functions() -> dict[str, Any]:
    pointer, number, size = c_void_p, c_int64, c_size_t
    declared: dict[str, tuple[Any, list[Any]]] = {
        "ggml_init": (pointer, [Parameters]),
        "ggml_free": (None, [pointer]),
        "ggml_new_tensor_2d": (pointer, [pointer, c_int, number, number]),
        "ggml_mul_mat": (pointer, [pointer] * 3),
        "ggml_new_graph": (pointer, [pointer]),
        "ggml_build_forward_expand": (None, [pointer] * 2),
        "ggml_backend_alloc_ctx_tensors": (pointer, [pointer] * 2),
        "ggml_backend_alloc_ctx_tensors_from_buft": (pointer, [pointer] * 2),
        "ggml_backend_tensor_set": (None, [pointer, pointer, size, size]),
        "ggml_backend_tensor_get": (None, [pointer, pointer, size, size]),
        "ggml_backend_graph_compute": (c_int, [pointer] * 2),
        "ggml_backend_init_by_type": (pointer, [c_int, c_char_p]),
        "ggml_backend_get_device": (pointer, [pointer]),
        "ggml_backend_dev_backend_reg": (pointer, [pointer]),
        "ggml_backend_reg_get_proc_address": (pointer, [pointer, c_char_p]),
        "ggml_backend_buft_name": (c_char_p, [pointer]),
    }
    found = {}
    for name, (result, arguments) in declared.items():
        function = getattr(libggml, name)
        function.restype, function.argtypes = result, arguments
        found[name] = function
    return found


@cache
def _backend() -> Any:
    """The processor."""
    start()
    return _functions()["ggml_backend_init_by_type"](0, None)


@cache
def _repacked() -> Any:
    """The type of the buffers called REPACKED; None where llama.cpp was compiled without."""
    call = _functions()
    device = call["ggml_backend_get_device"](_backend())
    registry = call["ggml_backend_dev_backend_reg"](device)
    address = call["ggml_backend_reg_get_proc_address"](registry, b"ggml_backend_dev_get_extra_bufts")
    if not address:
        return None
    extras = CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(device)
    place = 0
    while extras and extras[place]:
        if call["ggml_backend_buft_name"](extras[place]).decode() == REPACKED:
            return extras[place]
        place += 1
    return None
