"""A bundle in a folder: checked as it lies there, and written whole or not at all."""

import os
import secrets
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from edgeft.artifact import refused_writes
from edgeft.errors import BundleError
from edgeft.machine.files import sync
from edgeft.runtime.bundle_manifest import (
    MANIFEST,
    MAX_FILES,
    SIGNATURE,
    Manifest,
    SignatureCheck,
    check_content,
    check_listing,
    parse_manifest,
    small_file_problem,
)


def check_folder(path: Path, check: SignatureCheck | None = None) -> Manifest:
    """The manifest of the bundle in the folder `path`, with every file it lists checked, and no other there.

    `check` judges the signature before any file is read. Raises BundleError; links and special files are refused,
    not followed.
    """
    found = _files_of(path)
    for name in (MANIFEST, SIGNATURE):
        if problem := small_file_problem(name, found.get(name)):
            raise BundleError(f"{path}: {problem}")
    try:
        manifest = parse_manifest((path / MANIFEST).read_bytes(), path)
        if check is not None:
            check(path, manifest, (path / SIGNATURE).read_bytes() if SIGNATURE in found else None)
        check_listing(path, manifest, found)
        for name, record in manifest.files.items():
            with (path / name).open("rb") as file:
                check_content(path, name, record, file)
    except OSError as error:
        raise BundleError(f"{error.filename or path}: cannot be read ({error.strerror})") from None
    return manifest


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write(folder)` fill a new folder beside `path`, make it durable, then give it the name `path`.

    Raises BundleError when `path` is there already, ArtifactError when the disk refuses. When `write` raises,
    nothing is left.
    """
    if path.is_symlink() or path.exists():
        raise already_there(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with refused_writes(path):
            temporary.mkdir(parents=True)
            write(temporary)
            for file in sorted(temporary.rglob("*")):
                sync(file)
            sync(temporary)
            _rename(temporary, path)
            sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def already_there(path: Path) -> BundleError:
    """The error for a target that exists."""
    return BundleError(f"{path}: is there already; remove it or choose another name")


def _rename(temporary: Path, path: Path) -> None:
    try:
        os.rename(temporary, path)
    except OSError as error:
        if path.exists():  # made by somebody else meanwhile
            raise already_there(path) from None
        raise error


def _files_of(path: Path) -> dict[str, int]:
    """Name and size in bytes of every file under `path`."""
    found: dict[str, int] = {}
    folders = [path]
    n_seen = 0
    try:
        while folders:
            for entry in os.scandir(folders.pop()):
                name, status = Path(entry.path).relative_to(path).as_posix(), entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    folders.append(Path(entry.path))
                elif stat.S_ISREG(status.st_mode):
                    found[name] = status.st_size
                else:
                    what = "a link" if stat.S_ISLNK(status.st_mode) else "no plain file"
                    raise BundleError(f"{path}: {name!r} is {what}; a bundle holds plain files only")
                n_seen += 1
                if n_seen > 2 * MAX_FILES:
                    raise BundleError(f"{path}: holds more than {MAX_FILES} files; this is no bundle")
    except OSError as error:
        raise BundleError(f"{error.filename or path}: cannot be read ({error.strerror})") from None
    return found
