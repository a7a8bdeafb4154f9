"""Reading what the stages of a run left on disk; any stage may be missing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeft.bench.examples import Example, read_examples, take
from edgeft.bench.mistakes import find_mistakes
from edgeft.errors import ArtifactError

PACKAGE, SETTING = "package ", "recipe "
MODEL_STAGES = ("recover", "distill", "merge")  # the latest first
RESULTS = {
    "data": "summary.json",
    "parity": "parity.json",
    "baseline": "baseline.json",
    "bench": "bench.json",
    "gate": "verdict.json",
}


def gather(folders: Mapping[str, Path], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The parts `build.build_report` takes, from {stage: its folder} and what is known of the recipe.

    Raises ArtifactError for a file that is there and is not JSON.
    """
    parts: dict[str, Any] = {"recipe": dict(recipe)}
    for stage, name in RESULTS.items():
        if stage in folders and (folders[stage] / name).is_file():
            parts["verdict" if stage == "gate" else stage] = _read(folders[stage] / name)
    if "data" in folders and (folders["data"] / "check.json").is_file():
        parts["data_check"] = _counted(_read(folders["data"] / "check.json"))
    for stage in ("train", "distill", "recover"):
        if stage in folders and (folders[stage] / "log.jsonl").is_file():
            parts[stage] = _read_lines(folders[stage] / "log.jsonl")
    if "recover" in parts:
        parts["recovered"] = _recovered(folders["recover"])
    if "export" in folders and (folders["export"] / "files.json").is_file():
        parts["files"] = _files(folders["export"], recipe.get("ship"))
    if "bench" in folders and (folders["bench"] / "others.json").is_file():
        parts["others"] = _read(folders["bench"] / "others.json")
    if "bench" in parts and (folders["bench"] / "predictions.jsonl").is_file():
        parts["mistakes"] = _mistakes(folders, parts["bench"])
    parts["provenance"] = _provenance(folders)
    parts["settings"] = _settings(folders)
    return parts


def _mistakes(folders: Mapping[str, Path], bench: Mapping[str, Any]) -> dict[str, Any]:
    """What the file that ships gets wrong, with the prompts and their places where the data stage is there."""
    predictions = _read_lines(folders["bench"] / "predictions.jsonl")
    examples: list[Example | None] = [None] * len(predictions)
    places: list[dict[str, Any]] = []
    if "data" in folders and (folders["data"] / "test.jsonl").is_file():
        found = read_examples(folders["data"] / "test.jsonl")
        made_from = _read(folders["bench"] / "manifest.json").get("made_from", {})
        limit, seed = made_from.get(f"{SETTING}bench.limit"), made_from.get(f"{SETTING}seed", 0)
        rows = take(range(len(found)), limit, seed)
        if [found[row].answer for row in rows] == [each["reference"] for each in predictions]:
            examples = [found[row] for row in rows]
            lines = [each for each in _read_lines(folders["data"] / "examples.jsonl") if each["split"] == "test"]
            places = [lines[row] for row in rows] if len(lines) == len(found) else []
    metrics = [score["metric"] for score in bench["accuracy"]["scores"]]
    return find_mistakes(predictions, metrics, examples, places)


def _recovered(folder: Path) -> dict[str, Any]:
    """For which file recovery trained the model (None: it made nothing better), and the KL before and after."""
    metrics = _read(folder / "manifest.json")["metrics"]
    file = _read(folder / "provenance.json").get("recovered_for")
    return {"file": file, "kl_before": metrics["kl_before"], "kl_after": metrics["kl_after"]}


def _counted(check: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Code, count and meaning of what the data check found, errors first."""
    meaning = {found["code"]: found["what"] for found in check["findings"]}
    ordered = sorted(check["counts"].items(), key=lambda item: ("EWI".find(item[0][0]), item[0]))
    return [{"code": code, "count": n, "what": meaning.get(code, "-")} for code, n in ordered]


def _files(export: Path, ship: str | None) -> list[dict[str, Any]]:
    entries = _read(export / "files.json")
    manifest = export / "manifest.json"
    records = _read(manifest)["files"] if manifest.is_file() else {}
    names = [entry.get("ftype") or entry["file"].split("/")[0] for entry in entries]  # ONNX models by their folder
    return [
        {**entry, "ftype": name, "sha256": records.get(entry["file"], {}).get("sha256")}
        | {"ships": name == (ship or names[-1])}
        for entry, name in zip(entries, names, strict=True)
    ]


def _provenance(folders: Mapping[str, Path]) -> dict[str, Any]:
    """What the final model says about itself, the key of every artifact, the packages that made them."""
    paths = [folders[stage] / "provenance.json" for stage in MODEL_STAGES if stage in folders]
    known: dict[str, Any] = next((_read(path) for path in paths if path.is_file()), {})
    keys: dict[str, str] = {}
    packages: dict[str, str] = {}
    for stage, folder in folders.items():
        if (folder / "manifest.json").is_file():
            manifest = _read(folder / "manifest.json")
            keys[stage] = manifest["key"]
            for name, value in manifest.get("made_from", {}).items():
                if name.startswith(PACKAGE):
                    packages[name.removeprefix(PACKAGE)] = value
    return known | {"packages": packages, "artifacts": keys}


def _settings(folders: Mapping[str, Path]) -> dict[str, Any]:
    """The recipe's values that the artifacts were made from, by key."""
    found: dict[str, Any] = {}
    for folder in folders.values():
        if (folder / "manifest.json").is_file():
            made_from = _read(folder / "manifest.json").get("made_from", {})
            found |= {
                name.removeprefix(SETTING): value for name, value in made_from.items() if name.startswith(SETTING)
            }
    return dict(sorted(found.items()))


def _read_lines(path: Path) -> list[Any]:
    """None where there is no such file."""
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise ArtifactError(f"{path}: not JSON lines ({error}); run the stage that makes it again") from None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ArtifactError(f"{path}: not JSON ({error}); run the stage that makes it again") from None
