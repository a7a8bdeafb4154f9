"""A finished run, read back from its folder: the artifacts that belong together, and the recipe they were made by.

The recipe is put together from what the artifacts say they were made from (`made_from`), so it is what was run, not
what a file says by now; the paths of inputs are not in it, only their hashes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.artifact import Artifact, sha256_file
from edgeft.errors import ArtifactError, GateFailed, UsageError
from edgeft.runs import TRAINED, runs_there_are, stages_of

NANO = "edgeft/nano"
RECIPE, FILE, STAGE = "recipe ", "file ", "stage "


@dataclass(frozen=True)
class Run:
    """The artifacts of one run by stage."""

    name: str
    stages: dict[str, Artifact]

    @property
    def model(self) -> Artifact:
        """The final model as a Hugging Face folder."""
        return next(self.stages[stage] for stage in TRAINED if stage in self.stages)

    def json(self, stage: str, name: str) -> Any:
        """A JSON file of a stage; None where the run has none."""
        artifact = self.stages.get(stage)
        return json.loads(artifact.file(name).read_bytes()) if artifact and name in artifact.files else None

    @property
    def passed(self) -> bool | None:
        """Whether it met its recipe's budgets; None where there are none."""
        verdict = self.json("gate", "verdict.json")
        return bool(verdict["passed"]) if verdict and verdict["rows"] else None

    def check_passed(self) -> None:
        """Raise GateFailed when it missed budgets."""
        if self.passed is False:
            raise GateFailed(
                f"{self.name} missed budgets of its recipe; improve it, or pack it all the same (--failed)"
            )

    @property
    def values(self) -> dict[str, Any]:
        """Every recipe value a stage read, by its dotted key; inputs' paths are not among them."""
        values = {
            key.removeprefix(RECIPE): without_folders(value, key)
            for artifact in self.stages.values()
            for key, value in artifact.made_from.items()
            if key.startswith(RECIPE)
        }
        base = (self.json(self.model.stage, "provenance.json") or {}).get("base")
        return values | ({"model.base": NANO} if base == NANO else {})

    @property
    def inputs(self) -> dict[str, str]:
        """Hash (`store.HashCache.tree`) of every input by the recipe key that names it."""
        return {
            key.removeprefix(FILE): value
            for artifact in self.stages.values()
            for key, value in artifact.made_from.items()
            if key.startswith(FILE)
        }

    def recipe(self) -> dict[str, Any]:
        """The recipe as nested sections."""
        nested: dict[str, Any] = {"name": self.name}
        for key, value in sorted(self.values.items()):
            put(nested, key, value)
        return nested


def without_folders(value: Any, key: str = "") -> Any:
    """`value` with every path under a key `path` (sources with weights, replay) cut to its last name."""
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    if isinstance(value, dict):
        return {name: without_folders(inner, name) for name, inner in value.items()}
    return Path(value).name if isinstance(value, str) and key.split(".")[-1] == "path" else value


def put(nested: dict[str, Any], key: str, value: Any) -> None:
    """Set the dotted `key` in nested sections, making those that are missing."""
    *sections, last = key.split(".")
    for section in sections:
        inner = nested.get(section)
        nested[section] = nested = inner if isinstance(inner, dict) else {}
    nested[last] = value


def read_run(folder: Path, *, whole: bool = True) -> Run:
    """The run in `folder` (such as runs/home-assistant), every file of its artifacts checked where it must be `whole`.

    Raises UsageError when it is no run or made no file to ship, ArtifactError when an artifact is damaged or was made
    of another than the one beside it.
    """
    stages = stages_of(folder) if folder.is_dir() else {}
    if not any(stage in stages for stage in TRAINED) or "export" not in stages:
        raise UsageError(f"{folder}: not the folder of a run with exported files{runs_there_are(folder)}")
    for artifact in stages.values() if whole else ():
        _check_fits(artifact, stages)
        _check_files(artifact)
    name = stages["export"].made_from.get("recipe name", folder.absolute().name)
    return Run(str(name), stages)


def _check_fits(artifact: Artifact, stages: dict[str, Artifact]) -> None:
    for stage, other in stages.items():
        key = artifact.made_from.get(f"{STAGE}{stage}")
        if key not in (None, other.key):
            raise ArtifactError(
                f"{artifact.path}: was made of another {stage} than the one beside it; run the recipe again"
            )


def _check_files(artifact: Artifact) -> None:
    for name, record in artifact.files.items():
        path = artifact.path / name
        if not path.is_file() or path.stat().st_size != record.bytes or sha256_file(path) != record.sha256:
            raise ArtifactError(f"{path}: is missing or changed since it was made; run the recipe again")
