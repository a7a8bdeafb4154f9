"""The store: artifacts under their content address, found again, locked while made, verified before use.

WORKDIR/store/<stage>-<key>/         a finished artifact
WORKDIR/store/<stage>-<key>.work/    a stage's folder while it runs; survives a kill
WORKDIR/store/<stage>-<key>.damaged/ an artifact that no longer is what its manifest says
WORKDIR/store/locks/, hashes.json    one lock per artifact; sha256 of files already seen
WORKDIR/<recipe>/<stage>             link to the artifact this recipe made last
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeft.artifact import (
    CHECKPOINT,
    MANIFEST,
    Artifact,
    list_files,
    read_artifact,
    refused_writes,
    sha256_file,
    write_atomic,
    write_manifest,
)
from edgeft.console import Log
from edgeft.errors import ArtifactError
from edgeft.machine.files import point, sync
from edgeft.machine.locks import locked

STORE = "store"
KEY_CHARACTERS = 16
# A file changed within this time of being hashed could change again under the same timestamps.
SETTLED_NS = 100_000_000


class Store:
    """The artifacts of one working directory."""

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir.absolute()
        self.folder = self.workdir / STORE
        self.hashes = HashCache(self.folder / "hashes.json")

    def path(self, stage: str, key: str) -> Path:
        """Where the artifact with this key is or will be."""
        return self.folder / f"{stage}-{key[:KEY_CHARACTERS]}"

    def work_path(self, stage: str, key: str) -> Path:
        """The stage's folder while it runs."""
        return self._beside(stage, key, ".work")

    def check(self, stage: str, key: str) -> Artifact | str | None:
        """The artifact when it is whole, what is wrong when it is damaged, None when there is none."""
        return self._check(self.path(stage, key), stage, key)

    def find(self, stage: str, key: str, log: Log) -> Artifact | None:
        """The artifact when it is there and whole. A damaged one is reported and set aside."""
        found = self.check(stage, key)
        if not isinstance(found, str):
            return found
        path, aside = self.path(stage, key), self._beside(stage, key, ".damaged")
        with refused_writes(path):
            _remove(aside)
            os.replace(path, aside)
        log.say(f"{stage}: the artifact is damaged ({found}); set aside as {aside}, making it again")
        return None

    @contextlib.contextmanager
    def lock(self, stage: str, key: str, log: Log) -> Iterator[None]:
        """Hold the right to make this artifact; says so when another process has it, and waits."""
        path = self.folder / "locks" / self.path(stage, key).name
        with contextlib.ExitStack() as held:
            with refused_writes(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(
                    locked(path, lambda: log.say(f"{stage}: another run is making this; waiting for it"))
                )
            yield

    def discard(self, stage: str, key: str) -> None:
        """Remove the artifact and what a killed run left of it."""
        for path in (self.path(stage, key), self.work_path(stage, key)):
            with refused_writes(path):
                _remove(path)

    def begin(self, stage: str, key: str, *, resumable: bool) -> Path:
        """The folder for the stage to write in: what a killed run left when `resumable`, else empty."""
        work = self.work_path(stage, key)
        with refused_writes(work):
            if not resumable or (work / MANIFEST).exists():
                _remove(work)
            work.mkdir(parents=True, exist_ok=True)
        return work

    def finish(self, stage: str, key: str, metrics: dict[str, float], made_from: dict[str, Any]) -> Artifact:
        """Turn the stage's folder into the artifact: manifest, then drop the checkpoint, then rename."""
        work, path = self.work_path(stage, key), self.path(stage, key)
        artifact = write_manifest(work, stage, key, metrics, made_from)
        self._publish(work, path)
        for name, record in artifact.files.items():
            self.hashes.put(path / name, record.sha256)
        self.hashes.save()
        return replace(artifact, path=path)

    def adopt(self, stage: str, key: str) -> Artifact | None:
        """Finish what a killed run had finished but not renamed; None when there is no such thing."""
        work, path = self.work_path(stage, key), self.path(stage, key)
        if not (work / MANIFEST).exists() or not isinstance(self._check(work, stage, key), Artifact):
            return None
        self._publish(work, path)
        return read_artifact(path)

    def link(self, recipe_name: str, artifact: Artifact) -> Path:
        """Point WORKDIR/<recipe>/<stage> at the artifact; returns that path."""
        link = self.workdir / recipe_name / artifact.stage
        target = os.path.relpath(artifact.path, link.parent)
        with refused_writes(link):
            if link.is_symlink() and os.readlink(link) == target:
                return link
            if link.exists() and not link.is_symlink():
                raise ArtifactError(f"{link}: is in the way (not a link of edgeft); move it, then run again")
            link.parent.mkdir(parents=True, exist_ok=True)
            point(link, target)
        return link

    def linked(self, recipe_name: str, stage: str) -> Artifact | None:
        """The artifact this recipe made last at `stage`, unverified; None when there is none."""
        try:
            return read_artifact(self.workdir / recipe_name / stage)
        except ArtifactError:
            return None

    def _beside(self, stage: str, key: str, suffix: str) -> Path:
        path = self.path(stage, key)
        return path.with_name(path.name + suffix)

    def _publish(self, work: Path, path: Path) -> None:
        with refused_writes(path):
            _remove(work / CHECKPOINT)
            _remove(path)
            os.replace(work, path)
            sync(self.folder)

    def _check(self, path: Path, stage: str, key: str) -> Artifact | str | None:
        if not path.is_dir():
            return None
        try:
            artifact = read_artifact(path)
        except ArtifactError as error:
            return str(error)
        if (artifact.stage, artifact.key) != (stage, key):
            return f"its {MANIFEST} is of another artifact"
        for name, record in artifact.files.items():
            try:
                if (path / name).stat().st_size != record.bytes:
                    return f"the size of {name} changed"
                if self.hashes.sha256(path / name) != record.sha256:
                    return f"the content of {name} changed"
            except OSError as error:
                return f"{name} cannot be read: {error.strerror}"
        return artifact


class HashCache:
    """sha256 of files, remembered under size, times and inode, so that any rewrite is noticed.

    The file it is kept in is only a memory: unreadable or unwritable, everything still works, slower.
    """

    def __init__(self, path: Path, settled_ns: int = SETTLED_NS) -> None:
        self.path = path
        self.settled_ns = settled_ns
        self.known: dict[str, list[Any]] | None = None
        self.changed = False

    def sha256(self, path: Path) -> str:
        """Hex sha256 of the file. Raises OSError when it cannot be read."""
        fingerprint = _fingerprint(path)
        entry = self._entries().get(str(path))
        if entry is not None and entry[:-1] == fingerprint:
            return str(entry[-1])
        digest = sha256_file(path)
        self.put(path, digest, fingerprint)
        return digest

    def tree(self, path: Path) -> str:
        """Hash of a file, or of all names and contents of a folder. Raises OSError when it cannot be read."""
        if not path.is_dir():
            return self.sha256(path)
        names = [name for name in list_files(path) if "__pycache__" not in name]
        listing = "".join(f"{self.sha256(path / name)}  {name}\n" for name in names)
        return hashlib.sha256(listing.encode()).hexdigest()

    def put(self, path: Path, digest: str, fingerprint: list[Any] | None = None) -> None:
        """Remember a file's hash, unless it changed so recently that the times prove nothing."""
        fingerprint = fingerprint or _fingerprint(path)
        newest_ns = max(fingerprint[1:3])
        if time.time_ns() - newest_ns > self.settled_ns:
            self._entries()[str(path)] = [*fingerprint, digest]
            self.changed = True

    def save(self) -> None:
        """Write what was learned, if anything; files that are gone are forgotten."""
        if not self.changed or not self.path.parent.is_dir():
            return
        entries = {path: entry for path, entry in self._entries().items() if os.path.exists(path)}
        with contextlib.suppress(ArtifactError, OSError):
            write_atomic(self.path, json.dumps(entries))
            self.changed = False

    def _entries(self) -> dict[str, list[Any]]:
        if self.known is None:
            try:
                self.known = {str(k): list(v) for k, v in json.loads(self.path.read_bytes()).items()}
            except (OSError, ValueError, TypeError, AttributeError):
                self.known = {}
        return self.known


def _fingerprint(path: Path) -> list[Any]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _remove(path: Path) -> None:
    """Remove a folder, link or file, if there is one."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
