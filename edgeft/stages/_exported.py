"""What the export stage made, as its files.json lists it."""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgeft.artifact import Artifact
from edgeft.errors import ArtifactError


@dataclass(frozen=True)
class Exported:
    """One model of the list."""

    name: str
    """llama.cpp's ftype of a GGUF file, the folder's name of an ONNX model."""
    format: str
    """`gguf` or `onnx`."""
    file: str
    """As listed, relative to the artifact."""
    path: Path
    """What a runtime opens: the GGUF file, or the folder with graph and tokenizer."""


def exported_files(export: Artifact) -> dict[str, Exported]:
    """By name, in the recipe's order. Raises ArtifactError when a file is missing."""
    found = {}
    for entry in json.loads(export.file("files.json").read_bytes()):
        path, folder = export.file(entry["file"]), PurePosixPath(entry["file"]).parts[0]
        if entry["format"] == "onnx":
            path = export.path / folder
        name = entry.get("ftype", folder)
        found[name] = Exported(name, entry["format"], entry["file"], path)
    return found


def exported_file(export: Artifact, name: str) -> Exported:
    """The one called `name`. Raises ArtifactError when the artifact lists none."""
    files = exported_files(export)
    if name not in files:
        raise ArtifactError(f"{export.path}: files.json lists no {name} file, only {', '.join(files)}; export again")
    return files[name]
