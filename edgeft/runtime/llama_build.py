"""How the llama.cpp at hand was compiled, and whether this processor can run it.

Compiled for the machine at hand (its default) llama.cpp's kernels are one library, `libggml-cpu`, which uses every
instruction of that machine. On a processor without one of them the first product ends in SIGILL, which nobody
explains. So the features it was compiled with are asked before anything runs: `ggml_cpu_has_*` are constants.

A portable build (`GGML_BACKEND_DL`, `GGML_CPU_ALL_VARIANTS`) has the kernels many times, as `libggml-cpu-*`, and
loads the best one the processor can run. llama-cpp-python does not ask it to: `start` does.
"""

import ctypes
import importlib
import os
import re
import sys
from collections.abc import Collection
from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_uint8, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from edgeft.errors import RuntimeFault
from edgeft.machine.instruction_sets import CPUINFO, instruction_sets
from edgeft.runtime.llama_library import PACKAGE, llama_cpp

SINGLE = {"darwin": "libggml-cpu.dylib", "win32": "ggml-cpu.dll"}
VARIANT = re.compile(r"(?:lib)?ggml-cpu-(\w[\w.]*?)\.(?:so|dll|dylib)")
# ggml_cpu_has_* -> the instruction set as edgeft calls it. (ggml knows a few more, which come with one of these.)
NEEDED = {
    "avx": "avx",
    "avx2": "avx2",
    "f16c": "f16c",
    "fma": "fma",
    "avx_vnni": "avx_vnni",
    "avx512": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "amx_int8": "amx_int8",
    "neon": "neon",
    "fp16_va": "fp16",
    "dotprod": "dotprod",
    "matmul_int8": "i8mm",
    "sve": "sve",
}
ADVICE = "install llama-cpp-python again on this machine, or once for all machines: make setup LLAMA_CPU=portable"
CPU_DEVICE, F32, WIDTH = 0, 0, 256
TRIED = (F32, 1, 8, 2, 12, 14, 30)
"""GGML_TYPE_* of the matrices tried: F32, F16, Q8_0, Q4_0, Q4_K, Q6_K, BF16."""


@dataclass(frozen=True)
class LlamaBuild:
    """`variants`: the kernels of a portable build, by ggml's names; none of a build for one processor. `needs`: the
    instruction sets that the only kernels of such a build use; none where they do not tell."""

    needs: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()


def library_folder() -> Path:
    """Where llama-cpp-python keeps its libraries."""
    return Path(llama_cpp._lib._name).parent


def llama_build(folder: Path | None = None) -> LlamaBuild:
    """How the libraries in `folder` (those in use) were compiled. Nothing of them runs but a few constants."""
    folder = folder or library_folder()
    variants = {found[1] for path in folder.iterdir() if (found := VARIANT.match(path.name))}
    if variants:
        return LlamaBuild(variants=tuple(sorted(variants)))
    try:
        kernels = ctypes.CDLL(str(folder / SINGLE.get(sys.platform, "libggml-cpu.so")))
        return LlamaBuild(tuple(ours for name, ours in NEEDED.items() if getattr(kernels, f"ggml_cpu_has_{name}")()))
    except (OSError, AttributeError):  # another layout than we know: it may well run
        return LlamaBuild()


def check_build(build: LlamaBuild, present: Collection[str]) -> None:
    """Raise RuntimeFault when `build` uses instruction sets that are not `present`; none `present`: not known."""
    if present and (missing := [name for name in build.needs if name not in present]):
        names = ", ".join(missing)
        raise RuntimeFault(
            f"llama.cpp was compiled for another processor: this one has no {names}, so the system would kill it "
            f"(SIGILL); {ADVICE}"
        )


@cache
def start() -> None:
    """Make llama.cpp ready, once in a process: load the kernels of a portable build, begin its backend.

    Raises RuntimeFault when it was compiled with instructions this processor has not, and when no kernels load.
    """
    build = llama_build()
    check_build(build, instruction_sets() if CPUINFO.exists() else ())  # other systems tell of some only
    if build.variants:
        _load_variant()
    llama_cpp.llama_backend_init()


def _load_variant() -> None:
    llama_cpp.llama_log_set(_say_nothing, c_void_p(0))  # it would say on stderr which kernels it loads
    ggml = libggml()
    load, found = ggml.ggml_backend_load_all_from_path, ggml.ggml_backend_reg_by_name
    load.argtypes, load.restype = [c_char_p], None
    found.argtypes, found.restype = [c_char_p], c_void_p
    if not found(b"CPU"):  # another user of the library in this process may have loaded one
        load(os.fsencode(library_folder()))
    if not found(b"CPU"):
        raise RuntimeFault(f"{library_folder()}: none of llama.cpp's kernels runs on this processor; {ADVICE}")


@llama_cpp.llama_log_callback
def _say_nothing(level: int, text: bytes, data: Any) -> None:
    """Takes the place of llama.cpp's own log."""


def features() -> dict[str, int]:
    """What the kernels in use were compiled with, as llama.cpp prints it: `{"AVX2": 1, "OPENMP": 1}`; after `start`."""
    said = llama_cpp.llama_print_system_info().decode()
    return {name: int(number) for name, number in re.findall(r"(\w+) = (\d+)", said)}


def loaded_variant() -> str | None:
    """The kernels of a portable build that this process uses, by ggml's name; None for other builds and systems."""
    try:
        maps = Path("/proc/self/maps").read_text("utf-8", errors="replace")
    except OSError:
        return None
    found = VARIANT.search(maps)
    return found[1] if found else None


def try_products() -> None:
    """Multiply a matrix of each kind that files hold by a vector, as llama.cpp would: an instruction that this
    processor has not kills the process here."""
    ggml = _declared(libggml())
    backend = ggml.ggml_backend_init_by_type(CPU_DEVICE, None)
    size = 64 * ggml.ggml_tensor_overhead() + ggml.ggml_graph_overhead()
    context = ggml.ggml_init(_InitParams(size, None, True))
    graph = ggml.ggml_new_graph(context)
    vector = ggml.ggml_new_tensor_2d(context, F32, WIDTH, 1)
    tensors = [vector]
    for kind in TRIED:
        tensors.append(ggml.ggml_new_tensor_2d(context, kind, WIDTH, WIDTH))
        ggml.ggml_build_forward_expand(graph, ggml.ggml_mul_mat(context, tensors[-1], vector))
    buffer = ggml.ggml_backend_alloc_ctx_tensors(context, backend)
    for tensor in tensors:
        ggml.ggml_backend_tensor_memset(tensor, 0, 0, ggml.ggml_nbytes(tensor))
    status = ggml.ggml_backend_graph_compute(backend, graph)
    ggml.ggml_backend_buffer_free(buffer)
    ggml.ggml_free(context)
    ggml.ggml_backend_free(backend)
    if status:
        raise RuntimeFault(f"llama.cpp does not multiply (status {status}); {ADVICE}")


def libggml() -> Any:
    """ggml's own library, below llama.cpp's."""
    return importlib.import_module(f"{PACKAGE}._ggml").libggml


class _InitParams(ctypes.Structure):
    """`struct ggml_init_params` of ggml.h."""

    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


def _declared(ggml: Any) -> Any:
    """The functions used here, as in ggml.h, ggml-alloc.h and ggml-backend.h."""
    for name, result, arguments in (
        ("ggml_backend_init_by_type", c_void_p, [c_int, c_char_p]),
        ("ggml_tensor_overhead", c_size_t, []),
        ("ggml_graph_overhead", c_size_t, []),
        ("ggml_init", c_void_p, [_InitParams]),
        ("ggml_new_graph", c_void_p, [c_void_p]),
        ("ggml_new_tensor_2d", c_void_p, [c_void_p, c_int, c_int64, c_int64]),
        ("ggml_mul_mat", c_void_p, [c_void_p, c_void_p, c_void_p]),
        ("ggml_build_forward_expand", None, [c_void_p, c_void_p]),
        ("ggml_nbytes", c_size_t, [c_void_p]),
        ("ggml_backend_alloc_ctx_tensors", c_void_p, [c_void_p, c_void_p]),
        ("ggml_backend_tensor_memset", None, [c_void_p, c_uint8, c_size_t, c_size_t]),
        ("ggml_backend_graph_compute", c_int, [c_void_p, c_void_p]),
        ("ggml_backend_buffer_free", None, [c_void_p]),
        ("ggml_free", None, [c_void_p]),
        ("ggml_backend_free", None, [c_void_p]),
    ):
        function = getattr(ggml, name)
        function.restype, function.argtypes = result, arguments
    return ggml
