"""The software bill of materials of a bundle, in CycloneDX 1.6 JSON (https://cyclonedx.org/docs/1.6/json/).

The model is the component that is described. Its files are components with hashes; base model and data are what it
was made of; packages are what made it, and none of them is in the bundle. There is no date, so that the same run
gives the same bytes.
"""

import uuid
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from edgeft import __version__
from edgeft.artifact import FileRecord
from edgeft.bundle.contents import Extras, base_licence
from edgeft.bundle.run import Run

PACKAGE = "package "
NAMESPACE = uuid.UUID("6f0c0e5e-6b5b-5d0f-9d0e-5f5b8d1a7c11")
"""Of serial numbers, which RFC 9562 makes of a namespace and a name; this one is edgeft's, drawn once."""


def sbom(run: Run, extras: Extras, files: Mapping[str, FileRecord]) -> dict[str, Any]:
    """The document about these files of the bundle."""
    export = run.stages["export"]
    licence = extras.license or base_licence(run)
    model = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": run.name,
        "version": export.key[:16],
        **({"licenses": [{"expression": licence}]} if licence else {}),
        "components": [_file(name, record) for name, record in sorted(files.items())],
    }
    parts = [*_materials(run), *_packages(run)]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, export.key + ''.join(r.sha256 for r in files.values()))}",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "edgeft", "version": __version__}]},
            "component": model,
        },
        "components": parts,
        "dependencies": [{"ref": "model", "dependsOn": [part["bom-ref"] for part in parts]}],
    }


def _file(name: str, record: FileRecord) -> dict[str, Any]:
    return {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": _hashes(record.sha256)}


def _materials(run: Run) -> Iterator[dict[str, Any]]:
    """The base model and the prepared examples."""
    provenance = run.json(run.model.stage, "provenance.json") or {}
    if "base_sha256" in provenance:
        yield {
            "type": "machine-learning-model",
            "bom-ref": "base",
            "name": str(provenance.get("base", "base")).rstrip("/").rsplit("/", 1)[-1],
            "properties": [{"name": "edgeft:base_sha256", "value": provenance["base_sha256"]}],
        }
    data = run.stages.get("data")
    for split in ("train", "validation", "test"):
        if data and f"{split}.jsonl" in data.files:
            yield {
                "type": "data",
                "bom-ref": f"data:{split}",
                "name": f"{split}.jsonl",
                "hashes": _hashes(data.files[f"{split}.jsonl"].sha256),
                "data": [{"type": "dataset", "name": f"prepared {split} examples"}],
            }


def _packages(run: Run) -> Iterator[dict[str, Any]]:
    found = {
        name.removeprefix(PACKAGE): version
        for artifact in run.stages.values()
        for name, version in artifact.made_from.items()
        if name.startswith(PACKAGE) and version != "not installed"
    }
    for name, version in sorted(found.items()):
        purl = f"pkg:pypi/{name.lower().replace('_', '-')}@{quote(version, safe='')}"
        yield {
            "type": "library",
            "bom-ref": purl,
            "name": name,
            "version": version,
            "purl": purl,
            "scope": "excluded",
        }


def _hashes(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}]
