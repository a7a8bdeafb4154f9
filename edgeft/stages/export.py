"""Stage `export`: the merged model as files for edge runtimes."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from edgeft.artifact import Artifact
from edgeft.console import Log
from edgeft.export.gguf.export import export_gguf
from edgeft.recipe import Recipe
from edgeft.stages._calibrated import calibrated_settings
from edgeft.stages._model import final_model, recovered_for

N_TEXTS = 500
"""Messages of the training set that both tokenizers are compared on."""


def run(recipe: Recipe, inputs: dict[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Write a GGUF file for every entry of `export.gguf`, a folder for every one of `export.onnx`, and files.json;
    metrics are their sizes in bytes.

    With an entry of ftype `auto` there is mix.json too, the types chosen. The file that `recover` trained for is made
    of what that stage left, every other one of the model before it.

    Reads the model and provenance.json of `merge` and train.jsonl of `data`. Raises ModelError when the model
    cannot be exported.
    """
    model, recovered = final_model(inputs), inputs["recover"].path if "recover" in inputs else None
    files = export_gguf(
        model.path,
        out,
        name=recipe.name,
        ftypes=[entry.ftype for entry in recipe.export.gguf],
        provenance=_provenance(model.file("provenance.json")),
        log=log,
        settings=calibrated_settings(recipe, model.path, inputs["data"], out, log, recovered=recovered),
        texts=islice(_messages(inputs["data"].file("train.jsonl")), N_TEXTS),
    )
    if recipe.export.onnx:
        files += _onnx_folders(recipe, model, recovered, inputs["data"], out, log)
    (out / "files.json").write_text(json.dumps(files, indent=1) + "\n", encoding="utf-8")
    return {f"{entry['ftype']}_bytes": float(entry["bytes"]) for entry in files}


def _onnx_folders(
    recipe: Recipe, model: Artifact, recovered: Path | None, data: Artifact, out: Path, log: Log
) -> list[dict[str, Any]]:
    from edgeft.export.onnx.export import export_onnx  # a recipe without ONNX models needs no onnx package
    from edgeft.stages._onnx import onnx_settings

    target = recovered_for(recovered) if recovered else None
    provenance = _provenance(model.file("provenance.json"))
    folders: list[dict[str, Any]] = []
    for name, settings in onnx_settings(recipe, model.path, data, log, recovered=target).items():
        weights = recovered if recovered and name == target else model.path
        folders += export_onnx(weights, out, entries={name: settings}, provenance=provenance, log=log)
    return folders


def _provenance(path: Path) -> dict[str, str]:
    """The `edgeft.*` metadata; the version of edgeft is `edgeft.version`."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return {"version" if key == "edgeft_version" else key: str(value) for key, value in content.items()}


def _messages(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield from (str(message["content"]) for message in json.loads(line)["messages"])
