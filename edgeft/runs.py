"""What a path given to a command stands for: a model file, the model of a bundle, or the file that a run ships.

The one place that decides it, for every command that takes a model. Standard library only, so that a device can ask.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.artifact import MANIFEST, Artifact, read_artifact
from edgeft.errors import ArtifactError, ModelError, UsageError
from edgeft.runtime.bundle import Bundle, is_bundle, open_bundle

STORE, RECIPE = "store", "recipe "
EXPORT, BENCH = "export", "bench"
TRAINED = ("distill", "merge")
"""Stages whose artifact is the trained model as a Hugging Face folder, the latest of a run first."""
SUFFIXES = (".gguf", ".onnx")
MARKS = (f"*/{MANIFEST}", f"{BENCH}/bench.json", "status.json")
"""What a run's folder has, one or another."""
WEIGHTS = ("*.onnx", "onnx/*.onnx", "*.safetensors", "config.json")
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Found:
    """`model` is what a runtime opens, a file or a folder; `run` is the folder of the run that it belongs to, and
    `bundle` the bundle it was taken from."""

    model: Path
    run: Path | None = None
    bundle: Bundle | None = None


def find_model(path: Path, named: str | None = None) -> Found:
    """The model at `path`: a GGUF or ONNX file, a model's folder, a bundle, a run's folder or its export stage.

    Of a run it is the file that ships, of any other folder the only model file in it. A bundle is checked whole, and
    unpacked to the cache where it is a file. `named` is what the user wrote, for messages (None: the path). Raises
    ModelError, with the runs there are, where there is no model; BundleError for a damaged bundle.
    """
    named = named or str(path)
    if path.is_file():
        return _file(path, named)
    if not path.is_dir():
        raise ModelError(f"{named}: no such file; give a model file, a bundle or a run's folder{_beside(path)}")
    if is_bundle(path):
        bundle = open_bundle(path)
        return Found(bundle.model, bundle=bundle)
    if is_run(path):
        return Found(_shipped(path), run=path)
    if (path / "files.json").is_file():  # the stage alone
        return Found(_listed(path, shipped_entry(_entries(path), _chosen(path))))
    if any(next(path.glob(pattern), None) for pattern in WEIGHTS):
        return Found(path)
    return Found(_only_one(path, named))


def stages_of(run: Path) -> dict[str, Artifact]:
    """The artifacts linked in a run's folder by stage, their files unchecked. Raises ArtifactError for a manifest that
    cannot be read."""
    found = (read_artifact(path) for path in sorted(run.iterdir()) if (path / MANIFEST).is_file())
    return {artifact.stage: artifact for artifact in found}


def is_run(path: Path) -> bool:
    """Whether `path` is the folder of a run: one with artifacts of stages in it, what a benchmark wrote, or how far
    it is."""
    return path.is_dir() and any(next(path.glob(mark), None) for mark in MARKS)


def runs_in(workdir: Path) -> list[Path]:
    """The folders of all runs in a work folder, by name."""
    folders = sorted(path for path in workdir.iterdir() if path.name != STORE) if workdir.is_dir() else []
    return [path for path in folders if is_run(path)]


def runs_there_are(wanted: Path) -> str:
    """In words, for an error: the runs in the folder where `wanted` would be, or in `runs`."""
    for folder in (wanted, wanted.parent, Path("runs")):
        if names := [str(path) for path in runs_in(folder)]:
            return f"; there are: {', '.join(names)}"
    return "; none is here yet: `edgeft run RECIPE` makes one in runs/"


def recipe_values(run: Path, stage: str) -> dict[str, Any]:
    """The recipe's values that a stage of a run was made from, by their dotted key; none where it has no such stage."""
    try:
        made_from = read_artifact(run / stage).made_from
    except ArtifactError:
        return {}
    return {key.removeprefix(RECIPE): value for key, value in made_from.items() if key.startswith(RECIPE)}


def shipped_entry(entries: Sequence[Mapping[str, Any]], wanted: str | None = None) -> Mapping[str, Any]:
    """The row of files.json that ships, or the one `wanted` names by file, folder or type.

    Unless the recipe says what ships it is the last GGUF file, or the last folder of a run that has none. Raises
    UsageError when there is no such file.
    """
    last = [entry["file"] for entry in entries if entry["format"] == "gguf"] or [entry["file"] for entry in entries]
    wanted = wanted or str(last[-1])
    for entry in entries:
        if wanted in (entry["file"], entry_folder(entry), kind_of(entry)):
            return entry
    known = ", ".join(entry_folder(entry) or kind_of(entry) for entry in entries)
    raise UsageError(f"{wanted}: the run exported no such file, only {known}")


def entry_folder(entry: Mapping[str, Any]) -> str | None:
    """The folder of a model in several files; None where it is one file."""
    folder, inside, _ = str(entry["file"]).partition("/")
    return folder if inside else None


def kind_of(entry: Mapping[str, Any]) -> str:
    """Type of the weights: llama.cpp's `ftype`, or the `dtype` of an ONNX graph."""
    return str(entry.get("ftype") or entry.get("dtype") or entry["format"])


def trained_model(run: Path) -> Path:
    """The folder of the trained model in a run's folder. Raises ModelError where the run has none yet."""
    for stage in TRAINED:
        if (run / stage / MANIFEST).is_file():
            return run / stage
    raise ModelError(f"{run}: the run has no trained model yet; run its recipe to the end")


def exported_models(run: Path) -> list[Path]:
    """Every model file, or folder of one, that a run exported. Raises ModelError where there is none yet."""
    if not (run / EXPORT / "files.json").is_file():
        raise ModelError(f"{run}: the run has made no model file yet; run its recipe to the end")
    return [_listed(run / EXPORT, entry) for entry in _entries(run / EXPORT)]


def _beside(path: Path) -> str:
    """The model files that lie where `path` would be, or the runs there are."""
    names = sorted(each.name for each in path.parent.glob("*.gguf")) if path.parent.is_dir() else []
    return f"; {path.parent} has: {', '.join(names)}" if names else runs_there_are(path)


def _file(path: Path, named: str) -> Found:
    if path.suffix not in SUFFIXES and is_bundle(path):
        bundle = open_bundle(path)
        return Found(bundle.model, bundle=bundle)
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ModelError(f"{named}: a Git LFS pointer, not the model; fetch it with git lfs pull")
    return Found(path)


def _shipped(run: Path) -> Path:
    export = run / EXPORT
    measured = run / BENCH / "bench.json"
    if measured.is_file() and (name := _json(measured).get("file")) and (export / name).exists():
        return _listed(export, {"file": name})
    if not (export / "files.json").is_file():
        found = _model_files(run)
        return found[0] if len(found) == 1 else exported_models(run)[0]  # which says what is missing
    return _listed(export, shipped_entry(_entries(export), _chosen(export)))


def _chosen(export: Path) -> str | None:
    """What the recipe says ships."""
    ship = recipe_values(export.parent, export.name).get("export.ship")
    return None if ship is None else str(ship)


def _listed(export: Path, entry: Mapping[str, Any]) -> Path:
    return export / (entry_folder(entry) or str(entry["file"]))


def _entries(export: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = _json(export / "files.json")
    if not entries:
        raise ModelError(f"{export}: lists no exported file; run the recipe again")
    return entries


def _only_one(folder: Path, named: str) -> Path:
    found = _model_files(folder)
    if not found:
        raise ModelError(f"{named}: neither a model's folder, a bundle nor a run's folder{runs_there_are(folder)}")
    if len(found) > 1:
        names = ", ".join(file.relative_to(folder).as_posix() for file in found)
        raise ModelError(f"{named}: a folder with one model file is needed, it has: {names}; name the file")
    return found[0]


def _model_files(folder: Path) -> list[Path]:
    """Model files in a folder and one level below; deeper ones are named by hand."""
    return sorted(file for suffix in SUFFIXES for depth in ("", "*/") for file in folder.glob(f"{depth}*{suffix}"))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}); run the stage that makes it") from None
    except ValueError:
        raise ArtifactError(f"{path}: not valid JSON; run the stage that makes it again") from None
