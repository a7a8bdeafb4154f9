"""Folders of ONNX files in onnxruntime, with the execution providers of `Setup.providers`."""

from pathlib import Path

from edgeft.bench.backends import Runner, Setup
from edgeft.bench.roofline import Work
from edgeft.runtime.onnx_file import holds_onnx

BY_NAME_ONLY = False
DISTRIBUTIONS = ("onnxruntime",)


def accepts(path: Path) -> bool:
    """An .onnx file, or a folder that holds one, itself or in `onnx/`."""
    return holds_onnx(path)


def open_model(path: Path, setup: Setup) -> Runner:
    """See `Backend.open_model`."""
    from edgeft import runtime

    return runtime.load(path, n_ctx=setup.n_ctx, n_threads=setup.n_threads, providers=setup.providers)


def work(path: Path, model: Runner) -> Work | None:
    """Not known: a graph does not say which of its weights a step reads."""
    return None
