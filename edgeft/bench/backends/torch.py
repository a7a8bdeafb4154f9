"""Model folders in torch's eager mode: the baseline an exported file is held against. Only when asked for by name."""

from pathlib import Path
from typing import Any

from edgeft.bench.backends import Runner, Setup
from edgeft.bench.roofline import Work
from edgeft.extras import extra_needed

BY_NAME_ONLY = True
DISTRIBUTIONS = ("torch", "transformers")


def accepts(path: Path) -> bool:
    """A folder with the configuration of a model."""
    return (path / "config.json").is_file()


def open_model(path: Path, setup: Setup) -> Runner:
    """See `Backend.open_model`; `setup.device` is torch's name of a device."""
    import importlib

    with extra_needed("train"):  # by name: this package never imports torch itself
        eager = importlib.import_module("edgeft.training.eager")
    runner: Runner = eager.EagerModel(path, n_ctx=setup.n_ctx, n_threads=setup.n_threads, device=setup.device)
    return runner


def work(path: Path, model: Any) -> Work | None:
    """The eager model counts its own parameters."""
    return Work(**model.work())
