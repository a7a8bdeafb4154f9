"""Small bundles made by hand from docs/bundle.md, without the code that packs."""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

FILES = {"model/tiny.gguf": b"weights" * 100, "tokenizer/tokenizer.json": b"{}", "README.md": b"# tiny\n"}
ROLES = {"model": "model/tiny.gguf", "tokenizer": "tokenizer", "card": "README.md"}


def manifest_of(files: dict[str, bytes] = FILES, **changes: Any) -> dict[str, Any]:
    """The content of bundle.json."""
    records = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }
    return {"format": 1, "name": "tiny", "roles": ROLES, "gate": None, "files": records} | changes


def entry(name: str, mode: int = 0o100644, method: int = zipfile.ZIP_STORED) -> zipfile.ZipInfo:
    """A zip entry of a file with these Unix permissions."""
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr, info.compress_type = 3, mode << 16, method
    return info


def write_zip(path: Path, content: dict[str, bytes], manifest: Any = None) -> Path:
    """A zip file of these files behind a manifest (None: one that lists them)."""
    with zipfile.ZipFile(path, "w") as packed:
        raw = manifest if isinstance(manifest, bytes) else json.dumps(manifest or manifest_of(content)).encode()
        packed.writestr(entry("bundle.json"), raw)
        for name, data in content.items():
            packed.writestr(entry(name), data)
    return path


def write_folder(path: Path, content: dict[str, bytes] = FILES, manifest: Any = None) -> Path:
    """The same as a folder."""
    for name, data in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    (path / "bundle.json").write_text(json.dumps(manifest or manifest_of(content)))
    return path
