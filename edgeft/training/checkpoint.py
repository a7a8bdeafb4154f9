"""Checkpoints that resume to the bit: trained weights, optimizer, random state, step, and what the watching knows.

    checkpoint/state.pt             the last one
    checkpoint/state.previous.pt    the one before, used when the last is damaged
    checkpoint/best-<step>.safetensors   the best state so far, named by the two above

Every file is written beside its place, flushed to the disk and renamed: a kill leaves the old or the new one.
"""

import hashlib
import os
import pickle
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from edgeft.artifact import write_refused
from edgeft.errors import ArtifactError
from edgeft.machine.files import sync

FILE, PREVIOUS = "state.pt", "state.previous.pt"
TEMPORARY = ".tmp"
START_OVER = "delete the folder to start over, or set train.resume_from_checkpoint: false"


@dataclass(frozen=True)
class Resumed:
    """Where to go on: `step` steps are done; `extra` is what `save` was given."""

    step: int
    extra: dict[str, Any]


def fingerprint(plan: list[np.ndarray]) -> str:
    """Steps and content of a plan, so that a checkpoint is not continued with other batches."""
    digest = hashlib.sha256()
    for index in plan:
        digest.update(len(index).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(index, dtype="<i8").tobytes())
    return f"{len(plan)} steps, {digest.hexdigest()[:16]}"


def random_state() -> dict[str, Any]:
    """The state of torch's generators in this process."""
    state: dict[str, Any] = {"rng": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda_rng"] = torch.cuda.get_rng_state_all()
    return state


def save(
    folder: Path,
    model: torch.nn.Module,
    optimizer: Any,
    step: int,
    *,
    plan: str = "",
    extra: dict[str, Any] | None = None,
    ranks: Sequence[dict[str, Any]] = (),
) -> None:
    """Write the state after `step` steps; the file before stays as the previous one.

    `plan` is the `fingerprint` of the batches; `extra` plain data to get back; `ranks` the random states to go on
    from, this worker's first and then those of the workers beside it; empty: the one there is now. Raises
    ArtifactError when the disk refuses; the files before are untouched.
    """
    own, *others = ranks or (random_state(),)
    state = {
        "step": step,
        "plan": plan,
        "model": {n: p.detach() for n, p in model.named_parameters() if p.requires_grad},
        "optimizer": optimizer.state_dict(),
        "extra": extra or {},
        "other_ranks": others,
        **own,
    }
    path = folder / FILE
    with _replacing(path) as fresh:
        with fresh.open("wb") as file:
            torch.save(state, file)
        sync(fresh)
        if path.exists():
            os.replace(path, folder / PREVIOUS)


def resume(
    folder: Path,
    model: torch.nn.Module,
    optimizer: Any,
    *,
    plan: str = "",
    rank: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Resumed | None:
    """Load the last whole state in `folder` into model, optimizer and generators; None without a checkpoint.

    A damaged state is said, removed and passed over for the one before. Raises ArtifactError when all are
    damaged, or when the state is of another plan, model or optimizer.
    """
    damaged = []
    for path in (folder / FILE, folder / PREVIOUS):
        if not path.exists():
            continue
        state = _read(path)
        if isinstance(state, str):
            damaged.append((path, state))
            continue
        for other, problem in damaged:
            say(f"{other} is damaged ({problem}); going on from the one before, step {state['step']}")
            other.unlink(missing_ok=True)
        _load(path, state, model, optimizer, plan, rank)
        return Resumed(int(state["step"]), state.get("extra", {}))
    if damaged:
        path, problem = damaged[0]
        raise ArtifactError(f"{path}: the checkpoint is damaged ({problem}) and there is no other; {START_OVER}")
    return None


def save_best(folder: Path, model: torch.nn.Module, step: int) -> None:
    """Keep the trained weights after `step` steps. Raises ArtifactError when the disk refuses."""
    weights = {n: p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad}
    with _replacing(_best(folder, step)) as fresh:
        save_file(weights, fresh)


def load_best(folder: Path, model: torch.nn.Module, step: int) -> None:
    """Give `model` the weights kept after `step` steps. Raises ArtifactError when they are missing or damaged."""
    path = _best(folder, step)
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path}: the best state cannot be read ({error}); {START_OVER}") from error
    _copy(path, weights, model)


def drop_best(folder: Path, keep: Collection[int]) -> None:
    """Remove every kept state but those of the steps `keep`."""
    kept = {_best(folder, step) for step in keep}
    for path in folder.glob("best-*.safetensors"):
        if path not in kept:
            path.unlink(missing_ok=True)


def _best(folder: Path, step: int) -> Path:
    return folder / f"best-{step:08d}.safetensors"


def _read(path: Path) -> dict[str, Any] | str:
    """The state, or what is wrong with the file. torch.save writes a zip, which has a CRC-32 of each member."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            return f"the checksum of {broken} is wrong"
        state = torch.load(path, weights_only=True, map_location="cpu")
        missing = {"step", "model", "optimizer", "rng"} - set(state)
    except (
        zipfile.BadZipFile,
        pickle.UnpicklingError,
        OSError,
        RuntimeError,
        ValueError,
        TypeError,
        EOFError,
    ) as error:
        return str(error).split("\n")[0] or type(error).__name__
    return f"it lacks {', '.join(sorted(missing))}" if missing else state


def _load(path: Path, state: dict[str, Any], model: torch.nn.Module, optimizer: Any, plan: str, rank: int) -> None:
    theirs = state.get("plan", "")
    if plan and theirs and theirs != plan:
        raise ArtifactError(
            f"{path}: the checkpoint is of a run over other batches ({theirs}; now {plan}): data, batch_tokens, "
            f"epochs or seed changed; {START_OVER}"
        )
    _copy(path, state["model"], model)
    try:
        optimizer.load_state_dict(state["optimizer"])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: the checkpoint is of another optimizer ({error}); {START_OVER}") from error
    own = state if rank == 0 else dict(enumerate(state.get("other_ranks", []), 1)).get(rank)
    if own is not None:
        torch.set_rng_state(own["rng"])
        if "cuda_rng" in own and len(own["cuda_rng"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(own["cuda_rng"])


@torch.no_grad()
def _copy(path: Path, weights: dict[str, torch.Tensor], model: torch.nn.Module) -> None:
    own = {n: p for n, p in model.named_parameters() if p.requires_grad}
    odd = sorted(set(own) ^ set(weights)) or [n for n, p in own.items() if p.shape != weights[n].shape]
    if odd:
        raise ArtifactError(
            f"{path}: the checkpoint is of another model: {odd[0]} ({len(odd)} in all) is not in both, or not in "
            f"the same shape; {START_OVER}"
        )
    for name, parameter in own.items():
        parameter.copy_(weights[name])


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write; when the block ends well the file is durable and becomes `path`."""
    fresh = path.with_name(path.name + TEMPORARY)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield fresh
        sync(fresh)
        os.replace(fresh, path)
        sync(path.parent)
    except (OSError, RuntimeError, SafetensorError) as error:
        fresh.unlink(missing_ok=True)
        known = write_refused(error, path) if isinstance(error, OSError) else error
        if isinstance(known, ArtifactError):
            raise known from error
        raise ArtifactError(f"{path}: cannot write the checkpoint ({error}); free some space, run again") from error
