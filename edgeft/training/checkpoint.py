"""Checkpoints that resume to the bit: trained weights, optimizer, random state and step, in one file."""

import os
from pathlib import Path
from typing import Any

import torch

from edgeft.errors import ArtifactError

FILE = "state.pt"


def save(folder: Path, model: torch.nn.Module, optimizer: Any, step: int) -> None:
    """Write the state after `step` steps; the file before stays until this one is whole on disk.

    Raises ArtifactError when the disk refuses.
    """
    state = {
        "step": step,
        "model": {n: p.detach() for n, p in model.named_parameters() if p.requires_grad},
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda_rng"] = torch.cuda.get_rng_state_all()
    fresh = folder / (FILE + ".tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with fresh.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(folder / FILE)
    except OSError as error:
        raise ArtifactError(f"{fresh}: cannot write the checkpoint ({error.strerror}); free some space") from error


def resume(folder: Path, model: torch.nn.Module, optimizer: Any) -> int:
    """Load the state in `folder` into model and optimizer; the step to go on from, 0 without a checkpoint."""
    path = folder / FILE
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in state["model"].items():
            own[name].copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    if "cuda_rng" in state:
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    return int(state["step"])
