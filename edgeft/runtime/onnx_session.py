"""Opening an ONNX file in onnxruntime: which providers, how many threads."""

import contextlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeft.errors import Int8Warning, RuntimeFault, UsageError
from edgeft.machine.cores import usable_cores
from edgeft.runtime.huge_pages import on_huge_pages
from edgeft.runtime.int8_pairs import adds_in_16_bits, find_overflow
from edgeft.runtime.onnx_file import OnnxFile, check_onnx
from edgeft.runtime.ort import onnxruntime

CPU = "CPUExecutionProvider"
DEVICES = {"CUDAExecutionProvider": "cuda", "ROCMExecutionProvider": "cuda", "DmlExecutionProvider": "dml"}
"""Where a provider wants keys and values to stay; all others take them from ordinary memory."""
WIDE_SUMS = "session.x64quantprecision"
"""onnxruntime_session_options_config_keys.h: int8 weights as uint8, whose products are added in 32 bits."""
BYTES_PER_THREAD = 20_000_000
"""Smallest share of the weights worth a thread of its own: threads wait for each other after every operator."""


def choose_providers(wanted: Sequence[str]) -> list[str]:
    """The execution providers of `wanted`, in order of preference, that this onnxruntime has.

    Providers it has not are passed over as long as there is another. Nothing wanted is the processor. Raises
    UsageError for a name no onnxruntime knows, RuntimeFault when none of them is available; both name those that are.
    """
    available, known = onnxruntime.get_available_providers(), onnxruntime.get_all_providers()
    if unknown := [name for name in wanted if name not in known]:
        raise UsageError(f"no execution provider is called {unknown[0]!r}; available here: {', '.join(available)}")
    chosen = [name for name in wanted if name in available]
    if wanted and not chosen:
        raise RuntimeFault(
            f"this onnxruntime has none of the execution providers {', '.join(wanted)}; available here: "
            f"{', '.join(available)}; ask for one of these or install the onnxruntime package that has yours"
        )
    return chosen or [CPU]


def check_running(wanted: Sequence[str], running: Sequence[str]) -> None:
    """Raise RuntimeFault when a session runs on none of the providers `wanted`: onnxruntime passes over one that it
    cannot start (no driver, a missing library), down to the processor, which nobody asked for."""
    if wanted and not set(wanted) & set(running):
        raise RuntimeFault(
            f"onnxruntime could start none of the execution providers {', '.join(wanted)} and would run on "
            f"{running[0]}; check the driver and libraries of the device, or ask for {CPU} as well"
        )


def choose_threads(n_threads: int | None, weight_bytes: int) -> int:
    """`n_threads`, or a thread for every 20 MB of weights, at least one and at most one for every usable CPU."""
    return n_threads or max(1, min(usable_cores(), weight_bytes // BYTES_PER_THREAD))


def open_session(
    path: Path,
    *,
    n_threads: int | None,
    providers: Sequence[str],
    arena: bool = True,
    spinning: bool = True,
    huge_pages: bool = True,
) -> tuple[Any, OnnxFile]:
    """An `onnxruntime.InferenceSession` of the ONNX file `path`, which is checked first.

    `arena` keeps freed memory for the next run; without it each run gives it back. `spinning` lets the threads
    wait for work by spinning, which is faster on free cores and slower on busy ones. `huge_pages` moves the weights
    to such where Linux has them. A file whose int8 sums this processor would cut runs in a slower way, with a warning
    (`exact_sums`). Raises ModelError for a file that must not be loaded, RuntimeFault when onnxruntime
    refuses it, and what `choose_providers` and `check_running` raise.
    """
    chosen = choose_providers(providers)
    checked = check_onnx(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = choose_threads(n_threads, checked.weight_bytes)
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = arena
    # A pattern is kept for every shape of the inputs, and the mask has another with each token.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.log_severity_level = 4
    exact_sums(checked, options)
    try:
        with on_huge_pages() if huge_pages and chosen[0] == CPU else contextlib.nullcontext():
            session = onnxruntime.InferenceSession(str(path), options, providers=chosen)
    except Exception as error:  # onnxruntime's exceptions share no class of their own
        raise RuntimeFault(f"{path}: onnxruntime refused the file: {_one_line(error)}") from None
    check_running(providers, session.get_providers())
    session.disable_fallback()  # a run that fails is not tried again on another provider behind our back
    return session, checked


def exact_sums(file: OnnxFile, options: Any) -> None:
    """Have int8 products of `file` added exactly on a processor that would cut them (`int8_pairs`), and warn of it.

    Raises RuntimeFault where onnxruntime has no such way for one of them.
    """
    overflow = find_overflow(file) if adds_in_16_bits() else None
    if overflow is None:
        return
    if not overflow.avoidable:
        raise RuntimeFault(
            f"{file.path}: {overflow}, as this one does, and onnxruntime has no other way for QLinearMatMul: the "
            "numbers would be wrong; export it again, or quantize it with reduce_range or in the QDQ format"
        )
    options.add_session_config_entry(WIDE_SUMS, "1")
    note = f"{overflow}, as this one does; it runs in a slower, exact way here, and is wrong in other programs"
    file.notes.append(note)
    warnings.warn(f"{file.path}: {note}; export it again (edgeft export)", Int8Warning, stacklevel=4)


def run_fault(path: Path, error: Exception) -> RuntimeFault:
    """What to raise when a session failed while running."""
    return RuntimeFault(f"{path}: onnxruntime did not run: {_one_line(error)}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
