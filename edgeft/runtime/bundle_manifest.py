"""The manifest of a bundle: what it says, and whether files are what it says.

    bundle.json      the manifest: format, name, roles, and bytes and sha256 of every other file
    bundle.json.sig  optional Ed25519 signature, 64 bytes, of the bytes of bundle.json
    ...              the files the manifest lists, and no other

The format in words: docs/bundle.md. Standard library only.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from edgeft.artifact import CHUNK_BYTES, FileRecord
from edgeft.errors import BundleError
from edgeft.runtime.bundle_names import names_problem

MANIFEST, SIGNATURE = "bundle.json", "bundle.json.sig"
FORMAT = 1
MAX_FILES, MAX_MANIFEST_BYTES, SIGNATURE_BYTES = 1000, 1 << 20, 64
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Manifest:
    """What bundle.json says. `sha256` (hex) is of its bytes `raw`: it stands for the whole bundle.

    `roles` maps what a file is for (`model`, `tokenizer`, `generation`, …) to its name or its folder's; `gate` is
    `{"passed": bool}` or None where the run had no gate; `files` are all files but the manifest and its signature.
    """

    raw: bytes
    sha256: str
    name: str
    roles: Mapping[str, str]
    gate: Mapping[str, Any] | None
    files: Mapping[str, FileRecord]


SignatureCheck = Callable[[Path, Manifest, bytes | None], None]
"""Raises BundleError unless the signature (None: there is none) of the bundle at the path is good."""


def parse_manifest(raw: bytes, where: Path) -> Manifest:
    """The manifest in the bytes of bundle.json. Raises BundleError for anything it may not say."""
    try:
        content = json.loads(raw, object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: {MANIFEST} is not valid JSON ({error}); fetch or pack the bundle again") from None
    try:
        if content["format"] != FORMAT:
            raise BundleError(
                f"{where}: bundle format {content['format']!r}, this edgeft reads {FORMAT}; update edgeft"
            )
        name, files = _text(content["name"]), {key: _record(entry) for key, entry in content["files"].items()}
        roles = {role: _text(target) for role, target in content["roles"].items()}
        gate = content["gate"]
        if gate is not None and not isinstance(gate["passed"], bool):
            raise TypeError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BundleError(f"{where}: {MANIFEST} is not a bundle's manifest; fetch or pack the bundle again") from None
    manifest = Manifest(raw, hashlib.sha256(raw).hexdigest(), name, roles, gate, files)
    _check_names(where, manifest)
    return manifest


def check_listing(where: Path, manifest: Manifest, found: Mapping[str, int]) -> None:
    """Raise BundleError unless `found` (name: bytes) is what the manifest lists, itself and its signature beside."""
    unexpected = sorted(found.keys() - manifest.files.keys() - {MANIFEST, SIGNATURE})
    if unexpected:
        raise BundleError(f"{where}: holds {unexpected[0]!r}, which its manifest does not list; do not use this bundle")
    for name, record in manifest.files.items():
        if name not in found:
            raise BundleError(f"{where}: {name} is missing; fetch or pack the bundle again")
        if found[name] != record.bytes:
            raise BundleError(
                f"{where}: {name} has {found[name]} bytes, the manifest says {record.bytes}; it is cut short or changed"
            )


def check_content(where: Path, name: str, record: FileRecord, source: BinaryIO, to: BinaryIO | None = None) -> None:
    """Read `source` to its end, writing it to `to` if given; raise BundleError unless it is what `record` says.

    Nothing beyond the recorded size is read or written.
    """
    digest, left = hashlib.sha256(), record.bytes
    while left and (chunk := source.read(min(left, CHUNK_BYTES))):
        digest.update(chunk)
        left -= len(chunk)
        if to is not None:
            to.write(chunk)
    if left or digest.hexdigest() != record.sha256:
        raise BundleError(f"{where}: the content of {name} is not what the manifest says; do not use this bundle")


def small_file_problem(name: str, n_bytes: int | None) -> str | None:
    """Why a manifest or signature of this size (None: not there) is not read, or None."""
    if name == SIGNATURE:
        wrong = n_bytes not in (None, SIGNATURE_BYTES)
        return f"{name} has {n_bytes} bytes, a signature {SIGNATURE_BYTES}; do not use this bundle" if wrong else None
    if n_bytes is None:
        return f"not a bundle (no {name}); pack a run with `edgeft pack RUN -o FILE`"
    if n_bytes > MAX_MANIFEST_BYTES:
        return f"{name} has {n_bytes} bytes, more than the {MAX_MANIFEST_BYTES} allowed; do not use this bundle"
    return None


def _check_names(where: Path, manifest: Manifest) -> None:
    if len(manifest.files) > MAX_FILES:
        raise BundleError(f"{where}: {MANIFEST} lists more than the {MAX_FILES} files allowed")
    problem = names_problem([*manifest.files, MANIFEST, SIGNATURE]) or names_problem([manifest.name])
    if problem is None and "/" in manifest.name:
        problem = f"the name {manifest.name!r} is a path"
    if problem:
        raise BundleError(f"{where}: {MANIFEST}: {problem}; do not use this bundle")
    for role, name in manifest.roles.items():
        if name not in manifest.files and not any(other.startswith(f"{name}/") for other in manifest.files):
            raise BundleError(f"{where}: {MANIFEST}: the {role} is said to be {name!r}, which is not among its files")
    if "model" not in manifest.roles:
        raise BundleError(f"{where}: {MANIFEST} names no model; pack the run again")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _record(entry: Mapping[str, Any]) -> FileRecord:
    n_bytes, digest = entry["bytes"], entry["sha256"]
    if type(n_bytes) is not int or n_bytes < 0 or not SHA256.fullmatch(digest):
        raise ValueError
    return FileRecord(n_bytes, digest)


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found
