"""What goes into a bundle, file by file, and what each is for."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeft import runs
from edgeft.bundle.run import NANO, Run, without_folders
from edgeft.errors import UsageError
from edgeft.runs import entry_folder

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
TEMPLATE = "chat_template.jinja"
SAMPLING = ("temperature", "top_k", "top_p", "min_p")
"""Keys of generation_config.json that mean the same in `edgeft.runtime`."""
TEST_TEXTS = "mistakes"
"""Part of the report with questions and answers of the test set, which are not for whoever gets the model."""
LABEL_METRICS = {"label_accuracy", "macro_f1"}
MAX_LABELS = 1000
NANO_FOLDER = Path(__file__).parent.parent / "assets" / "nano"


@dataclass(frozen=True)
class Item:
    """A file of the bundle: its name there, its bytes or where they are, and its role.

    `shared`: the role is that of the whole folder the file is in.
    """

    name: str
    content: bytes | Path
    role: str
    shared: bool = False


@dataclass(frozen=True)
class Extras:
    """What the packer adds: an SPDX licence expression, licence texts, and files in place of the run's own.

    `file` picks the exported file by name or ftype (None: the one that ships); `files` maps `generation`, `schema`,
    `grammar`, `labels` or `calibration` to a file. `base` is the base model's folder, for the layout `peft`.
    """

    file: str | None = None
    license: str | None = None
    license_files: tuple[Path, ...] = ()
    files: Mapping[str, Path] = field(default_factory=dict)
    base: Path | None = None


def collect(run: Run, extras: Extras) -> list[Item]:
    """The files of the bundle but card, SBOM and manifest. Raises UsageError when there is no such exported file."""
    model, entry = run.model, shipped_entry(run, extras.file)
    measured = measurements(run, entry)
    items = [*model_items(run, extras.file)]
    items += [
        Item(f"tokenizer/{name}", model.path / name, "tokenizer", shared=True)
        for name in TOKENIZER_FILES
        if name in model.files
    ]
    if TEMPLATE in model.files:
        items.append(Item(TEMPLATE, model.path / TEMPLATE, "chat_template"))
    own = {
        "generation": generation_defaults(run),
        "schema": run.recipe().get("bench", {}).get("json_schema"),
        "labels": labels(run),
        "calibration": calibration(run, entry, measured),
    }
    for role, value in own.items():
        if value is not None and role not in extras.files:
            items.append(Item(f"{role}.json", to_json(value), role))
    for role, path in sorted(extras.files.items()):
        items.append(Item(f"{role}.gbnf" if role == "grammar" else f"{role}.json", path, role))
    items += _licences(run, extras)
    if (report := run.json("report", "report.json")) is not None:
        shown = {key: part for key, part in report.items() if key != TEST_TEXTS}
        items.append(Item("reports/report.json", to_json(shown), "report"))
    if measured is not None:
        items.append(Item("reports/bench.json", to_json(measured), "measurements"))
    items.append(Item("recipe.json", to_json(recipe_record(run)), "recipe"))
    return items


def shipped_entry(run: Run, wanted: str | None = None) -> dict[str, Any]:
    """The row of files.json that ships, or the one `wanted` names; see `runs.shipped_entry`."""
    return dict(runs.shipped_entry(run.json("export", "files.json"), wanted or run.values.get("export.ship")))


def model_items(run: Run, wanted: str | None) -> Iterator[Item]:
    """The exported file, or every file of the exported folder."""
    entry, export = shipped_entry(run, wanted), run.stages["export"]
    folder = entry_folder(entry)
    if folder is None:
        yield Item(f"model/{entry['file']}", export.file(entry["file"]), "model")
        return
    for file in export.files:
        if file.startswith(f"{folder}/"):
            yield Item(f"model/{file.removeprefix(f'{folder}/')}", export.path / file, "model", shared=True)


def generation_defaults(run: Run) -> dict[str, Any]:
    """Options of `edgeft.runtime` under which the file was measured, and the system message it was trained with.

    Greedy unless the model's own generation_config.json samples; of a classifier only the context.
    """
    if is_classifier(run):
        n_ctx = run.values.get("bench.n_ctx")
        return {"n_ctx": n_ctx} if n_ctx is not None else {}
    config = run.json(run.model.stage, "generation_config.json") or {}
    sampling = {key: config[key] for key in SAMPLING if config.get(key) is not None} if config.get("do_sample") else {}
    defaults = {"temperature": 0.0, **sampling}
    for key in ("max_new_tokens", "n_ctx"):
        if run.values.get(f"bench.{key}") is not None:
            defaults[key] = run.values[f"bench.{key}"]
    system = _common_system(run)
    return defaults | ({"system": system} if system else {})


def is_classifier(run: Run) -> bool:
    """Whether the model has a head that chooses a label."""
    config = run.json(run.model.stage, "config.json") or {}
    return any("SequenceClassification" in name for name in config.get("architectures") or ())


def labels(run: Run) -> list[str] | None:
    """What a classifier may answer: of its head, or the answers trained on where they are scored as labels."""
    if is_classifier(run):
        config = run.json(run.model.stage, "config.json")
        return [text for _, text in sorted(config["id2label"].items(), key=lambda pair: int(pair[0]))]
    if not LABEL_METRICS & set(run.values.get("bench.metrics") or ()):
        return None
    found = {str(messages[-1].get("content") or "") for messages in _training_messages(run)}
    return sorted(found) if 0 < len(found) <= MAX_LABELS else None


def measurements(run: Run, entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the run measured of this exported file, else of the one that ships (`file` says which); None: nothing."""
    shipped: dict[str, Any] | None = run.json("bench", "bench.json")
    for measured in (shipped, *(run.json("bench", "others.json") or ())):
        if measured and measured["file"] in (entry["file"], entry_folder(entry)):
            return dict(measured)
    return shipped


def calibration(run: Run, entry: Mapping[str, Any], measured: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """How sure the file is: a classifier's confidence.json, the confidence below which the recipe abstains, and how
    far confidence was right; None when nothing of it is known."""
    bins = (measured or {}).get("accuracy", {}).get("reliability")
    threshold = run.values.get("bench.abstain_below")
    found = run.json("export", f"{entry_folder(entry)}/confidence.json") or {}
    return found | ({"threshold": threshold} if threshold else {}) | ({"reliability": bins} if bins else {}) or None


def recipe_record(run: Run) -> dict[str, Any]:
    """What `edgeft reproduce` needs: the recipe, hashes of its inputs, and what every stage made of what."""
    return {
        "recipe": run.recipe(),
        "inputs": dict(sorted(run.inputs.items())),
        "stages": {
            stage: {
                "key": artifact.key,
                "made_from": without_folders(dict(sorted(artifact.made_from.items()))),
                "files": {name: record.sha256 for name, record in sorted(artifact.files.items())},
            }
            for stage, artifact in sorted(run.stages.items())
        },
    }


def copy_file(source: Path, target: Path) -> None:
    """Copy to a new folder if need be. Raises UsageError when there is no such file."""
    if not source.is_file():
        raise UsageError(f"{source}: no such file")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def to_json(value: Any) -> bytes:
    """Readable JSON, always in the same bytes."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, sort_keys=True) + "\n").encode()


def base_licence(run: Run) -> str | None:
    """SPDX expression of the base's licence where it is known: the model edgeft comes with."""
    return "Apache-2.0" if run.values.get("model.base") == NANO else None


def _licences(run: Run, extras: Extras) -> Iterator[Item]:
    for path in extras.license_files:
        yield Item(f"licences/{path.name}", path, "licences", shared=True)
    if run.values.get("model.base") == NANO:
        yield Item("licences/edgeft-nano.md", NANO_FOLDER / "README.md", "licences", shared=True)


def _common_system(run: Run) -> str | None:
    """The system message that every training example begins with."""
    found = None
    for messages in _training_messages(run):
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        if system is None or found not in (None, system):
            return None
        found = system
    return found


def _training_messages(run: Run) -> Iterator[list[dict[str, Any]]]:
    """The chats of the training split, where there are any."""
    data = run.stages.get("data")
    if data is None or "train.jsonl" not in data.files:
        return
    with data.file("train.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            messages = json.loads(line).get("messages")
            if not messages:
                return
            yield messages
