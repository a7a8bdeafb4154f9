"""Whether a run can be done at all, asked before anything dear: packages, space on the disk, a GPU.

Files of the recipe are looked at by `plan`, its values when it is read.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from edgeft.errors import EdgeftError, MissingExtra
from edgeft.pipeline import State
from edgeft.preflight import estimate
from edgeft.recipe import Recipe

PACKAGES = {
    "train": ("torch", "transformers", "peft", "sklearn"),
    "gguf": ("gguf", "llama_cpp"),
    "onnx": ("onnx", "onnxruntime"),
}
"""Modules of the extras that stages name."""
GPU_FILES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/proc/driver/nvidia/version")


class NotReady(EdgeftError):
    """The run cannot be done on this machine as it is; one problem a line."""


def check_ready(recipe: Recipe, states: Sequence[State], workdir: Path) -> None:
    """Raise MissingExtra or NotReady with everything that stands against making these states' stages."""
    todo = [state for state in states if state.artifact is None]
    missing = missing_extras(todo)
    problems = [*([missing] if missing else []), *_space(recipe, todo, workdir), *_gpu(recipe, todo)]
    if missing and len(problems) == 1:
        raise MissingExtra(missing)
    if problems:
        raise NotReady("\n".join([*problems, "nothing was run"]))


def missing_extras(todo: Sequence[State], found: Callable[[str], bool] | None = None) -> str:
    """What to install for these stages, in words; empty when all is there. `found` says whether a module is."""
    found = found or (lambda name: importlib.util.find_spec(name) is not None)
    lacking: dict[str, list[str]] = {}
    stages: list[str] = []
    for state in todo:
        step = state.planned.step
        absent = {e: [m for m in PACKAGES.get(e, ()) if not found(m)] for e in step.extra.split(",")}
        if any(absent.values()):
            stages.append(step.stage)
            lacking |= {extra: modules for extra, modules in absent.items() if modules}
    if not lacking:
        return ""
    modules = ", ".join(dict.fromkeys(module for each in lacking.values() for module in each))
    extras = ",".join(lacking)
    return (
        f"the stages {', '.join(stages)} need Python packages that are not installed ({modules}); "
        f'pip install "edgeft[{extras}]" (in a checkout: pip install -c constraints.txt -e ".[{extras}]")'
    )


def _space(recipe: Recipe, todo: Sequence[State], workdir: Path) -> list[str]:
    """Stages are made one after the other, and what only one needs while it works is free for the next."""
    if not todo:
        return []
    costs = estimate(recipe, list(todo)).values()
    kept, most = 0.0, 0.0
    for cost in costs:
        most = max(most, kept + (cost.disk_bytes or 0))
        kept += (cost.disk_bytes or 0) - cost.working_bytes
    there = next(path for path in (workdir.absolute(), *workdir.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if most <= free:
        return []
    return [
        f"{workdir}: the run writes about {_size(most)}, and {_size(free)} are free there; free some space, choose "
        "another --workdir, or make fewer files (export)"
    ]


def _gpu(recipe: Recipe, todo: Sequence[State]) -> list[str]:
    trains = {state.planned.stage for state in todo} & {"train", "distill"}
    if not trains or recipe.train is None or recipe.train.optim != "adamw_8bit" or _has_gpu():
        return []
    return ["train.optim: adamw_8bit needs a GPU, and there is none here; set train.optim: adamw"]


def _has_gpu() -> bool:
    return any(os.path.exists(path) for path in GPU_FILES)


def _size(n_bytes: float) -> str:
    unit, scale = ("GB", 1e9) if n_bytes >= 1e9 else ("MB", 1e6)
    return f"{n_bytes / scale:.3g} {unit}"
