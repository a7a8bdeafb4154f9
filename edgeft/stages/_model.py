"""The model that ships: what the last stage behind training made of it."""

import json
from pathlib import Path

from edgeft.artifact import Artifact

MODEL_STAGES = ("distill", "merge")
"""Stages whose artifact is a Hugging Face folder with provenance.json, the latest of a run first. That of `recover` is
one too, but of the model as one file wants it."""
RECOVERED_FOR = "recovered_for"
"""The key of provenance.json that names the file `recover` trained for."""


def final_model(inputs: dict[str, Artifact]) -> Artifact:
    """The latest model among what a stage reads."""
    return next(inputs[stage] for stage in MODEL_STAGES if stage in inputs)


def recovered_for(folder: Path) -> str | None:
    """The file of the recipe that `recover` trained the model folder for; None where it did not."""
    found: str | None = json.loads((folder / "provenance.json").read_text("utf-8")).get(RECOVERED_FOR)
    return found
