"""Making a bundle of a finished run. The same run and options give the same bytes."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgeft import __version__
from edgeft.artifact import FileRecord, refused_writes, sha256_file, writing
from edgeft.bundle.card import model_card
from edgeft.bundle.contents import Extras, Item, collect, copy_file, to_json
from edgeft.bundle.run import Run
from edgeft.bundle.sbom import sbom
from edgeft.bundle.signing import sign
from edgeft.errors import UsageError
from edgeft.runtime.bundle import check_bundle
from edgeft.runtime.bundle_folder import write_folder
from edgeft.runtime.bundle_manifest import FORMAT, MANIFEST, SIGNATURE, Manifest
from edgeft.runtime.bundle_names import name_problem
from edgeft.runtime.bundle_zip import write_zip

CARD, SBOM = "README.md", "sbom.cdx.json"


def pack(
    run: Run, out: Path, extras: Extras, *, key: Path | None = None, folder: bool = False, failed: bool = False
) -> Manifest:
    """Write the bundle of `run` to `out`, signed with the private `key` if there is one; returns its manifest.

    With `folder` a folder, which must not exist; else one file, which is replaced. Raises GateFailed for a run that
    missed its budgets unless `failed` allows it, UsageError for files that are not there, ArtifactError when the
    disk refuses.
    """
    if not failed:
        run.check_passed()

    def fill(target: Path) -> None:
        _fill(target, run, extras, key)

    if folder:
        write_folder(out, fill)
        return check_bundle(out)
    with refused_writes(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary, writing(out) as packed:
        target = Path(temporary)
        fill(target)
        write_zip(target, _names(target), packed)
        return check_bundle(packed)


def _fill(target: Path, run: Run, extras: Extras, key: Path | None) -> None:
    """Every file of the bundle, the manifest after those it lists and the signature after the manifest."""
    items = collect(run, extras)
    items.append(Item(CARD, model_card(run, extras).encode(), "card"))
    _copy(items, target)
    bill = Item(SBOM, to_json(sbom(run, extras, _records(target))), "sbom")
    _copy([bill], target)
    manifest = to_json(
        {
            "format": FORMAT,
            "name": run.name,
            "edgeft": __version__,
            "gate": None if run.passed is None else {"passed": run.passed},
            "roles": _roles([*items, bill]),
            "files": {
                name: {"bytes": record.bytes, "sha256": record.sha256} for name, record in _records(target).items()
            },
        }
    )
    (target / MANIFEST).write_bytes(manifest)
    if key is not None:
        (target / SIGNATURE).write_bytes(sign(manifest, key))


def _copy(items: Sequence[Item], target: Path) -> None:
    for item in items:
        path = target / item.name
        if path.exists():
            raise UsageError(f"{item.name}: two files would have this name in the bundle; rename one")
        if problem := name_problem(item.name):
            raise UsageError(f"{item.name}: a name that {problem}; rename the file")
        if isinstance(item.content, Path):
            copy_file(item.content, path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(item.content)


def _roles(items: Sequence[Item]) -> dict[str, str]:
    """Role → file, or the folder that shares it."""
    return {item.role: item.name.partition("/")[0] if item.shared else item.name for item in items}


def _names(target: Path) -> list[str]:
    return sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())


def _records(target: Path) -> dict[str, FileRecord]:
    return {name: FileRecord((target / name).stat().st_size, sha256_file(target / name)) for name in _names(target)}
