"""Reading what the stages of a run left on disk; any stage may be missing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    parts["provenance"] = _provenance(folders)
    parts["settings"] = _settings(folders)
    return parts


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
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise ArtifactError(f"{path}: not JSON lines ({error}); run the stage that makes it again") from None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ArtifactError(f"{path}: not JSON ({error}); run the stage that makes it again") from None
