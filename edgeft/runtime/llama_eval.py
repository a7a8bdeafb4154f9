"""What llama.cpp computes inside: its eval callback, from Python.

llama.cpp hands every node of its graph to a callback as a `struct ggml_tensor`, whose layout (ggml.h) is no
stable interface. So the mirror of it here is tested, before it is used, on tensors made through ggml's functions.
"""

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_bool, c_char, c_char_p, c_int, c_int32, c_int64, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp._ggml import libggml

from edgeft.errors import RuntimeFault
from edgeft.runtime.llama import LlamaModel

MAX_DIMS, MAX_SRC, MAX_OP_PARAMS, MAX_NAME, OBJECT_BYTES = 4, 10, 64, 64, 32
WEIGHT_NAME, N_OPS = b"blk.0.attn_q.weight", 90
"""Of the test of the layout: a name, and a number of operations that every ggml has."""

F32, I32 = 0, 26
"""GGML_TYPE_F32 and GGML_TYPE_I32."""

OUTPUT_FLOATS = 1 << 24
"""Logits llama.cpp holds at once: 64 MiB. Activations of every token are wanted, so it computes them for every one."""


class _Tensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml.h."""


_Tensor._fields_ = (
    ("type", c_int),
    ("buffer", c_void_p),
    ("ne", c_int64 * MAX_DIMS),
    ("nb", c_size_t * MAX_DIMS),
    ("op", c_int),
    ("op_params", c_int32 * (MAX_OP_PARAMS // 4)),
    ("flags", c_int32),
    ("src", POINTER(_Tensor) * MAX_SRC),
    ("view_src", POINTER(_Tensor)),
    ("view_offs", c_size_t),
    ("data", c_void_p),
    ("name", c_char * MAX_NAME),
    ("extra", c_void_p),
    ("padding", c_char * 8),
)


class Node:
    """A tensor of the graph, valid only while the callback that was given it runs."""

    def __init__(self, tensor: _Tensor) -> None:
        self._tensor = tensor

    @property
    def name(self) -> str:
        """As in llama.cpp's graph: `l_out-3` for a result, `blk.3.attn_q.weight` for a weight."""
        return str(self._tensor.name.decode(errors="replace"))

    @property
    def op(self) -> str:
        """`MUL_MAT`, `ADD`, …; `NONE` for weights and inputs."""
        name: bytes = _ggml().ggml_op_name(self._tensor.op)
        return name.decode()

    @property
    def shape(self) -> tuple[int, ...]:
        """All four dimensions, the slowest first (numpy's order)."""
        return tuple(reversed(self._tensor.ne[:]))

    @property
    def is_float32(self) -> bool:
        """Whether `array` can read it."""
        return bool(self._tensor.type == F32)

    def sources(self) -> list["Node"]:
        """What it is computed from."""
        return [Node(source.contents) for source in self._tensor.src if source]

    def array(self) -> np.ndarray:
        """A copy of the values, float32 in `shape`. Raises RuntimeFault when it is of another type."""
        return self._copy(F32, np.float32)

    def indices(self) -> np.ndarray:
        """A copy of int32 values (as of the experts chosen), in `shape`. Raises RuntimeFault for another type."""
        return self._copy(I32, np.int32)

    def _copy(self, kind: int, dtype: type[np.number[Any]]) -> np.ndarray:
        tensor = self._tensor
        if tensor.type != kind:
            raise RuntimeFault(f"llama.cpp's tensor {self.name} has type {tensor.type}, not {kind}; it cannot be read")
        strides = tuple(reversed(tensor.nb[:]))
        last = sum((n - 1) * stride for n, stride in zip(self.shape, strides, strict=True))
        # Views have gaps; what lies from the first value to the last is copied, then read with the strides.
        raw = np.empty(last + np.dtype(dtype).itemsize, np.uint8)
        _ggml().ggml_backend_tensor_get(ctypes.byref(tensor), raw.ctypes.data, 0, raw.nbytes)
        values = np.ndarray(self.shape, dtype, raw, strides=strides)
        return values.copy()


Wants = Callable[[Node], bool]
"""Whether a node's values are wanted; asked before they are computed."""
Takes = Callable[[Node], None]
"""Given each wanted node once its values are there."""


class WatchedLlama(LlamaModel):
    """A GGUF model that shows what it computes."""

    def __init__(self, path: Path, *, n_ctx: int, n_threads: int | None = None) -> None:
        """Raises RuntimeFault when llama.cpp refuses the file, or is another one than the mirror above is of."""
        self_test()
        self._wants: Wants = _nothing
        self._takes: Takes = _ignore
        self._raised: BaseException | None = None
        self._callback = llama_cpp.ggml_backend_sched_eval_callback(self._called)
        super().__init__(path, n_ctx=n_ctx, n_threads=n_threads, n_gpu_layers=0)

    def watch(self, ids: Sequence[int], wants: Wants, takes: Takes) -> None:
        """Run `ids` (at most n_ctx) from an empty context and give `takes` every node that `wants` chooses.

        A long sequence runs in pieces, each of which shows its own nodes, with its own tokens. An exception of
        `wants` or `takes` ends the run and is raised here.
        """
        self._check_length(ids)
        self._reset()
        self._wants, self._takes, self._raised = wants, takes, None
        piece = max(1, min(self._n_batch, OUTPUT_FLOATS // self.n_vocab))
        try:
            for at in range(0, len(ids), piece):
                tokens = ids[at : at + piece]
                self._decode(tokens, len(tokens))
                if self._raised is not None:
                    raise self._raised
        finally:
            self._wants, self._takes = _nothing, _ignore

    def _context_params(self) -> Any:
        params = super()._context_params()
        params.cb_eval = self._callback
        return params

    def _called(self, address: int, ask: bool, _: Any) -> bool:
        """The callback; an exception cannot pass through C, so it is kept for `watch`."""
        if self._raised is not None:
            return False
        node = Node(_Tensor.from_address(address))
        try:
            if ask:
                return self._wants(node)
            self._takes(node)
        except BaseException as error:
            self._raised = error
            return False
        return True


def _nothing(node: Node) -> bool:
    return False


def _ignore(node: Node) -> None:
    pass


@cache
def self_test() -> None:
    """Raise RuntimeFault when this ggml lays its tensors out in another way than `_Tensor` does."""
    problem = _layout_problem()
    if problem:
        version = _ggml().ggml_version().decode()
        raise RuntimeFault(
            f"ggml {version} in llama-cpp-python {llama_cpp.__version__} is not the library edgeft knows: {problem}; "
            "install the version of llama-cpp-python that constraints.txt names"
        )


def _layout_problem() -> str | None:
    """What shows another layout: a matrix product made through ggml, read through the mirror."""
    library = _ggml()
    if library.ggml_tensor_overhead() != OBJECT_BYTES + ctypes.sizeof(_Tensor):
        return f"its tensors have {library.ggml_tensor_overhead() - OBJECT_BYTES} bytes, not {ctypes.sizeof(_Tensor)}"
    context = library.ggml_init(_InitParams(1 << 20, None, False))
    try:
        weight, inputs = (library.ggml_new_tensor_4d(context, F32, *ne) for ne in ((3, 5, 1, 1), (3, 7, 1, 1)))
        product = library.ggml_mul_mat(context, weight, inputs).contents
        view = library.ggml_view_2d(context, inputs, 2, 4, 12, 4).contents
        library.ggml_set_name(weight, WEIGHT_NAME)
        # Addresses are compared, not followed: in another layout they may lead anywhere.
        right = {
            "type": product.type == F32,
            "shape": tuple(product.ne) == (5, 7, 1, 1),
            "strides": tuple(product.nb) == (4, 20, 140, 140) and tuple(view.nb)[:2] == (4, 12),
            "operation": 0 <= product.op < N_OPS and library.ggml_op_name(product.op) == b"MUL_MAT",
            "sources": [_address(source) for source in product.src[:3]] == [_address(weight), _address(inputs), None],
            "view": view.view_offs == 4 and _address(view.view_src) == _address(inputs),
            "data": weight.contents.data == library.ggml_get_data(weight),
            "name": weight.contents.name == WEIGHT_NAME,
        }
    finally:
        library.ggml_free(context)
    return next((f"the {field} of a known tensor stands elsewhere" for field, ok in right.items() if not ok), None)


def _address(tensor: Any) -> int | None:
    """Where a pointer to a tensor leads; None for a null pointer."""
    return ctypes.cast(tensor, c_void_p).value


class _InitParams(ctypes.Structure):
    """`struct ggml_init_params` of ggml.h."""

    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


@cache
def _ggml() -> Any:
    """libggml, with the functions used here declared as in ggml.h and ggml-backend.h. Raises RuntimeFault."""
    tensor = POINTER(_Tensor)
    for name, result, arguments in (
        ("ggml_version", c_char_p, []),
        ("ggml_op_name", c_char_p, [c_int]),
        ("ggml_tensor_overhead", c_size_t, []),
        ("ggml_get_data", c_void_p, [tensor]),
        ("ggml_set_name", tensor, [tensor, c_char_p]),
        ("ggml_init", c_void_p, [_InitParams]),
        ("ggml_free", None, [c_void_p]),
        ("ggml_new_tensor_4d", tensor, [c_void_p, c_int, c_int64, c_int64, c_int64, c_int64]),
        ("ggml_mul_mat", tensor, [c_void_p, tensor, tensor]),
        ("ggml_view_2d", tensor, [c_void_p, tensor, c_int64, c_int64, c_size_t, c_size_t]),
        ("ggml_backend_tensor_get", None, [tensor, c_void_p, c_size_t, c_size_t]),
    ):
        try:
            function = getattr(libggml, name)
        except AttributeError:
            raise RuntimeFault(f"llama-cpp-python {llama_cpp.__version__}: its ggml has no {name}") from None
        function.restype, function.argtypes = result, arguments
    return libggml
