"""An artifact: a folder whose manifest is written last, and atomic writes.

A folder without `manifest.json` is not an artifact, so a stage killed half-way leaves nothing that could be
mistaken for a result. The manifest lists every file with its size and sha256, the key of the stage that made
it and the stage's metrics.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeft.errors import ArtifactError, WriteRefused
from edgeft.machine.files import sync

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
CHECKPOINT = "checkpoint"
CHUNK_BYTES = 1 << 20

# What stands against a write, and what to do. Other errno values are bugs of ours. Where else a command can write is
# for the command line to add: it knows the command's options.
WRITE_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space or write to another place",
    errno.EDQUOT: "your disk quota is used up; free some space or write to another place",
    errno.EROFS: "the file system is read-only; write to another place",
    errno.EACCES: "no permission to write there; write to another place",
    errno.EPERM: "no permission to write there; write to another place",
    errno.ENOTDIR: "a part of the path is a file, not a folder; write to another place",
    errno.EEXIST: "a part of the path is a file, not a folder; write to another place",
    errno.EISDIR: "it is a folder; name a file",
    errno.ENAMETOOLONG: "the name is too long for the file system; choose a shorter one",
    errno.EFBIG: "the file system cannot hold a file that large; write to another place",
    errno.EIO: "the disk reports an input/output error; check it, or write to another place",
}
TEMPORARY_NAME = re.compile(r"\.(?P<name>.+)\.\d+-[0-9a-f]{8}\.tmp")


@dataclass(frozen=True)
class FileRecord:
    """Size and content of one file of an artifact."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Artifact:
    """What a stage left on disk.

    `key` is the content address (sha256 hex) of `made_from`: everything the stage read, by name (keys of
    other artifacts, recipe values, hashes of files, versions). `files` maps names relative to `path` (with
    `/`) to their records; `metrics` are the flat numbers the stage returned.
    """

    path: Path
    stage: str
    key: str
    files: dict[str, FileRecord]
    metrics: dict[str, float]
    made_from: dict[str, Any] = field(default_factory=dict)

    def file(self, name: str) -> Path:
        """Path of the file `name` of this artifact. Raises ArtifactError when it has none of that name."""
        if name not in self.files:
            known = ", ".join(sorted(self.files)) or "none"
            raise ArtifactError(f"{self.path}: the {self.stage} artifact has no file {name}; it has: {known}")
        return self.path / name


def read_artifact(path: Path) -> Artifact:
    """Read the manifest of the artifact at `path`.

    Sizes and contents of the files are not looked at; `store.verify` does that. Raises ArtifactError when
    there is no manifest or it cannot be understood.
    """
    manifest = path / MANIFEST
    try:
        content = json.loads(manifest.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{path}: not an artifact (no {MANIFEST}); run the stage that makes it") from None
    except OSError as error:
        raise ArtifactError(f"{manifest}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise ArtifactError(f"{manifest}: not valid JSON; delete {path} and run again") from None
    try:
        return _from_manifest(path, content)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ArtifactError(f"{manifest}: not a manifest of edgeft; delete {path} and run again") from None


def write_manifest(
    path: Path, stage: str, key: str, metrics: dict[str, float], made_from: dict[str, Any] | None = None
) -> Artifact:
    """Hash every file under `path`, make them durable, then write the manifest: the folder is an artifact.

    The folder `checkpoint` is no part of it. Raises ArtifactError when the disk refuses or there is no file.
    """
    files = {}
    names = [n for n in list_files(path) if n != MANIFEST and not n.startswith(f"{CHECKPOINT}/")]
    if not names:
        raise ArtifactError(f"{path}: the stage {stage} wrote nothing")
    with refused_writes(path):
        for name in names:
            sync(path / name)
            files[name] = FileRecord((path / name).stat().st_size, sha256_file(path / name))
        for folder in sorted({(path / name).parent for name in files} | {path}):
            sync(folder)
    artifact = Artifact(path, stage, key, files, metrics, made_from or {})
    write_atomic(path / MANIFEST, json.dumps(_to_manifest(artifact), indent=2) + "\n")
    return artifact


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `content` (text as UTF-8) to `path` so that a reader sees the old file or the whole new one."""
    with writing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def writing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, make it durable and rename it.

    Not `durable`: a process that dies leaves `path` as it was, but a machine that loses power may not have the
    content yet. For large files that can be made again, or that `write_manifest` will make durable.

    When the block raises, the temporary file is removed and `path` is as it was. Raises ArtifactError when
    the disk is full, read-only or forbidden.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with refused_writes(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if durable:
                sync(temporary)
            os.replace(temporary, path)
            if durable:
                sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def refused_writes(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write (full, read-only, forbidden) into an ArtifactError."""
    try:
        yield
    except OSError as error:
        raise write_refused(error, path) from error


def write_refused(error: OSError, path: Path) -> OSError | ArtifactError:
    """The ArtifactError for `error`, or `error` itself when it is not a refusal to write."""
    if error.errno not in WRITE_ADVICE:
        return error
    named = error.filename2 or error.filename  # of a copy the second is what was written
    where = Path(os.fsdecode(named)) if isinstance(named, str | bytes | os.PathLike) else path
    if temporary := TEMPORARY_NAME.fullmatch(where.name):
        where = where.with_name(temporary["name"])
    return WriteRefused(f"{where}: cannot write: {WRITE_ADVICE[error.errno]}")


def list_files(path: Path) -> list[str]:
    """Names of all files under `path`, relative, with `/`, sorted."""
    return sorted(entry.relative_to(path).as_posix() for entry in path.rglob("*") if entry.is_file())


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _to_manifest(artifact: Artifact) -> dict[str, Any]:
    return {
        "format": MANIFEST_FORMAT,
        "stage": artifact.stage,
        "key": artifact.key,
        "made_from": artifact.made_from,
        "metrics": artifact.metrics,
        "files": {name: {"bytes": record.bytes, "sha256": record.sha256} for name, record in artifact.files.items()},
    }


def _from_manifest(path: Path, content: dict[str, Any]) -> Artifact:
    if content["format"] != MANIFEST_FORMAT:
        raise ValueError("another format")
    files = {
        str(name): FileRecord(int(record["bytes"]), str(record["sha256"])) for name, record in content["files"].items()
    }
    metrics = {str(name): float(value) for name, value in content["metrics"].items()}
    made_from = dict(content["made_from"])
    return Artifact(path, str(content["stage"]), str(content["key"]), files, metrics, made_from)
