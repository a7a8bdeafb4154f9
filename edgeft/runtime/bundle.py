"""Opening a bundle: a folder or a zip file of a model and all that belongs to it, checked file by file.

Nothing of a bundle is believed before it is seen to be what the manifest lists; a zip file is unpacked into a cache
and used from there. Standard library only. Who made a bundle is for `check` to say, such as what
`edgeft.bundle.signing.signed_by` returns; without it only damage is found.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.artifact import refused_writes
from edgeft.errors import BundleError
from edgeft.runtime.bundle_folder import check_folder, write_folder
from edgeft.runtime.bundle_manifest import MANIFEST, SIGNATURE, Manifest, SignatureCheck
from edgeft.runtime.bundle_zip import ZipBundle

KEY_CHARACTERS = 16
ZIP_START = b"PK\x03\x04"


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk that is what its manifest says. `cache` is a folder of its own that may be written to."""

    path: Path
    manifest: Manifest
    cache: Path

    @property
    def model(self) -> Path:
        """The model file, or the folder of a model in several files."""
        return self.path / self.manifest.roles["model"]

    def file(self, role: str) -> Path | None:
        """The file or folder of a role; None when the bundle has none."""
        name = self.manifest.roles.get(role)
        return None if name is None else self.path / name

    def json(self, role: str) -> Any:
        """The JSON file of a role (`generation`, `labels`, `schema`, `calibration`, …); None when there is none."""
        path = self.file(role)
        if path is None:
            return None
        try:
            return json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"{path}: not JSON ({error}); pack it again") from None


def open_bundle(path: Path, cache: Path | None = None, check: SignatureCheck | None = None) -> Bundle:
    """The bundle at `path`, every file's size and sha256 checked; a zip file is unpacked into `cache` first.

    `cache` is a folder for all bundles (None: `default_cache()`); nothing is written to it for a bundle that is a
    folder. A copy unpacked before is checked and used again. Raises BundleError when anything is missing, changed,
    too much or not allowed, ArtifactError when the disk refuses, and what `check` raises.
    """
    cache = cache or default_cache()
    if path.is_dir():
        manifest = check_folder(path, check)
        return Bundle(path, manifest, cache / f"{_cache_name(manifest)}.cache")
    with ZipBundle(path) as packed:
        manifest = packed.manifest
        if check is not None:
            check(path, manifest, packed.signature())
        target = cache / _cache_name(manifest)
        if not _is_whole(target, manifest):
            if target.exists():  # damaged; where it is missing, another process may be making it
                with refused_writes(target):
                    shutil.rmtree(target)
            try:
                packed.unpack(target)
            except BundleError:
                if not _is_whole(target, manifest):  # nobody was faster
                    raise
    return Bundle(target, manifest, cache / f"{_cache_name(manifest)}.cache")


def check_bundle(path: Path, check: SignatureCheck | None = None) -> Manifest:
    """The manifest of the bundle at `path` after reading all of it once. Raises as `open_bundle`; writes nothing."""
    if path.is_dir():
        return check_folder(path, check)
    with ZipBundle(path) as packed:
        if check is not None:
            check(path, packed.manifest, packed.signature())
        packed.check()
        return packed.manifest


def unpack_bundle(path: Path, target: Path, check: SignatureCheck | None = None) -> Manifest:
    """Write the bundle at `path` as the new folder `target`, whole or not at all. Raises as `open_bundle`."""
    if not path.is_dir():
        with ZipBundle(path) as packed:
            if check is not None:
                check(path, packed.manifest, packed.signature())
            packed.unpack(target)
            return packed.manifest
    manifest = check_folder(path, check)

    def copy(folder: Path) -> None:
        names = [*manifest.files, MANIFEST, *([SIGNATURE] if (path / SIGNATURE).is_file() else [])]
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path / name, folder / name, follow_symlinks=False)
        check_folder(folder, check)  # what was copied, not what was there a moment before

    write_folder(target, copy)
    return manifest


def default_cache() -> Path:
    """$EDGEFT_CACHE, else `edgeft` in $XDG_CACHE_HOME or ~/.cache."""
    named = os.environ.get("EDGEFT_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeft"


def is_bundle(path: Path) -> bool:
    """Whether `path` looks like a bundle: a folder with a manifest, or a zip file. Says nothing about its content."""
    if path.is_dir():
        return (path / MANIFEST).is_file()
    try:
        with path.open("rb") as file:
            return file.read(len(ZIP_START)) == ZIP_START
    except OSError:
        return False


def _cache_name(manifest: Manifest) -> str:
    return f"{manifest.name}-{manifest.sha256[:KEY_CHARACTERS]}"


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    try:
        return folder.is_dir() and check_folder(folder).raw == manifest.raw
    except BundleError:
        return False
