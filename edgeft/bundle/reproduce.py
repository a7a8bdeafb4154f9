"""Running a bundle's recipe again, and comparing what comes out byte by byte.

Nothing in a bundle is run: a recipe is data, and scripts and inputs are the user's own, each checked against the
hash in the bundle before anything starts. What a recipe would send elsewhere (a teacher's endpoint, a key from the
environment) must be given again by the user: a bundle cannot choose where data goes.
"""

import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.artifact import write_atomic
from edgeft.bundle.diff import flat
from edgeft.bundle.run import FILE, NANO, STAGE, put, without_folders
from edgeft.console import Log
from edgeft.errors import BundleError, UsageError
from edgeft.pipeline import run
from edgeft.plan import Planned, differences, plan
from edgeft.recipe import Recipe
from edgeft.recipe_reader import read_recipe, recipe_from_text
from edgeft.runtime.bundle import Bundle
from edgeft.store import Store
from edgeft.torch_dtype import settled

OUTSIDE = ("base_url", "api_key_env")
"""Keys, by their last part, that make a run send something to another machine."""
BEGUN = "reproduction.json"
NOT_OURS = (
    "is not empty, and what is there is not this reproduction cut short; it could be taken for a new run. Choose a new "
    "folder with --workdir"
)
LAST_STAGES = ("export", "recover", "distill", "merge")
"""What makes the files that ship, the latest of a run first; what comes behind only measures them."""


@dataclass(frozen=True)
class Reproduction:
    """What came out: `files` by stage and name, whether each has the bytes of the first run; the rest as sentences.

    `model_files` are those the bundle ships, by their name in it. `changes` are differences of this machine from the
    first one (package versions) under which the bytes may differ.
    """

    files: dict[str, dict[str, bool]]
    model_files: dict[str, bool]
    changes: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether every file the bundle ships came out again."""
        return all(self.model_files.values())


def reproduce(bundle: Bundle, recipe: Recipe, workdir: Path, log: Log) -> Reproduction:
    """Run `recipe` (of `packed_recipe`) up to the exported files in `workdir` and compare them with the bundle's.

    A reproduction that was cut short in `workdir` is gone on with. Raises UsageError when anything else is in
    `workdir`, BundleError when an input is not the one the bundle was made of, and what the stages raise.
    """
    record = read_record(bundle)
    until = next(stage for stage in LAST_STAGES if stage in record["stages"])
    recipe, _ = settled(recipe, log)
    store = Store(workdir)
    steps = plan(recipe, store.hashes, until)
    check_inputs(record, steps)
    _claim(workdir, bundle, recipe, log)
    changes = _changes(record, steps)
    for change in changes:
        log.say(f"not as in the first run: {change}")
    artifacts = run(recipe, store, log, until=until).artifacts
    (workdir / BEGUN).unlink()
    before = {stage: made["files"] for stage, made in record["stages"].items()}
    files = {
        stage: {name: name in artifact.files and artifact.files[name].sha256 == sha256 for name, sha256 in old.items()}
        for stage, artifact in artifacts.items()
        if (old := before.get(stage)) is not None
    }
    hashes = {found.sha256 for artifact in artifacts.values() for found in artifact.files.values()}
    shipped = {
        name: entry.sha256 in hashes
        for name, entry in bundle.manifest.files.items()
        if name.split("/")[0] in ("model", "tokenizer")
    }
    return Reproduction(files, shipped, changes)


def refuse_foreign(workdir: Path) -> None:
    """Raise UsageError when there is something in `workdir`, and no reproduction was begun there."""
    if workdir.is_dir() and any(workdir.iterdir()) and not (workdir / BEGUN).is_file():
        raise UsageError(f"{workdir}: {NOT_OURS}")


def _claim(workdir: Path, bundle: Bundle, recipe: Recipe, log: Log) -> None:
    """Make `workdir` the folder of this reproduction, which BEGUN names until it has ended."""
    told = json.dumps(recipe.model_dump(mode="json"), sort_keys=True)
    ours = {"bundle": bundle.manifest.sha256, "recipe": hashlib.sha256(told.encode()).hexdigest()}
    begun = workdir / BEGUN
    if workdir.is_dir() and any(workdir.iterdir()):
        if not begun.is_file() or begun.read_bytes() != json.dumps(ours).encode():
            raise UsageError(f"{workdir}: {NOT_OURS}")
        log.say(f"going on with the reproduction begun in {workdir}")
    write_atomic(begun, json.dumps(ours))


def read_record(bundle: Bundle) -> dict[str, Any]:
    """What recipe.json of the bundle says. Raises BundleError when there is none or it is not as edgeft writes it."""
    record: dict[str, Any] | None = bundle.json("recipe")
    if record is None:
        raise BundleError(f"{bundle.path}: has no recipe; pack the run again")
    try:
        stages = [(stage["made_from"], stage["files"]) for stage in record["stages"].values()]
        recipe = record["recipe"]
        tables = [recipe, recipe.get("model", {}), recipe.get("data", {}), record["inputs"], *itertools.chain(*stages)]
        if all(isinstance(table, dict) for table in tables) and set(LAST_STAGES) & set(record["stages"]):
            return record
    except (KeyError, TypeError, AttributeError):
        pass
    raise BundleError(f"{bundle.file('recipe')}: not a recipe as edgeft packs it; pack the run again")


def packed_recipe(bundle: Bundle, like: Path | None, overrides: tuple[str, ...]) -> Recipe:
    """The recipe in the bundle, with the paths of its inputs from the recipe file `like` or from `overrides`.

    Raises UsageError when a path is missing, BundleError when the bundle has no recipe.
    """
    record = read_record(bundle)
    content: dict[str, Any] = record["recipe"]
    content.get("data", {}).pop("prepare", None)  # a script is run: the user names it
    given = tuple(override.partition("=")[0] for override in overrides)
    folder = Path.cwd() if like is None else like.absolute().parent
    own: dict[str, Any] = {}
    if like is not None:
        own = read_recipe(like).model_dump(mode="json")
        _take_paths(content, own, record["inputs"])
    _check_outside(content, flat(own), given)
    missing = [key for key in record["inputs"] if not _is_given(key, content, given)]
    if like is None and missing:
        options = " ".join(f"--set {key}=PATH" for key in missing)
        raise UsageError(f"{bundle.path}: say where its inputs are: {options}, or --recipe FILE that names them")
    return recipe_from_text(json.dumps(content), folder / "recipe.json", overrides)


def _check_outside(content: dict[str, Any], own: dict[str, Any], given: tuple[str, ...]) -> None:
    """Raise UsageError for a key in OUTSIDE that the user did not give as well."""
    for key, value in flat(content).items():
        if key.split(".")[-1] in OUTSIDE and value is not None and key not in given and own.get(key) != value:
            raise UsageError(
                f"{key}: the packed recipe says {value!r}, and data or a secret would go there; where that is what you "
                f"want, say so: --set {key}={value}"
            )


def check_inputs(record: dict[str, Any], steps: list[Planned]) -> None:
    """Raise BundleError unless every input file has the content it had in the first run."""
    for planned in steps:
        for name, value in planned.made_from.items():
            key = name.removeprefix(FILE)
            if name.startswith(FILE) and record["inputs"].get(key) != value:
                raise BundleError(
                    f"{key}: not what the bundle was made of (sha256 {value[:12]}…, then "
                    f"{str(record['inputs'].get(key))[:12]}…); give the same file or folder"
                )


def _changes(record: dict[str, Any], steps: list[Planned]) -> tuple[str, ...]:
    """In words, what else is not as it was: versions of packages and stages, defaults of newer keys."""
    found = []
    for planned in steps:
        before = record["stages"].get(planned.stage, {}).get("made_from", {})
        now = without_folders(planned.made_from)
        found += differences(*({key: side[key] for key in side if not key.startswith(STAGE)} for side in (before, now)))
    return tuple(dict.fromkeys(found))


def _is_given(key: str, content: dict[str, Any], given: tuple[str, ...]) -> bool:
    """Whether the path of this input is known: set, alone or with the list it is in, or the model edgeft comes with."""
    in_package = key == "model.base" and content.get("model", {}).get("base") == NANO
    return in_package or any(f"{key}.".startswith(f"{one}.") or one.startswith(f"{key}.") for one in given)


def _take_paths(content: dict[str, Any], own: dict[str, Any], inputs: dict[str, str]) -> None:
    for key in inputs:
        parts = key.split(".")
        if parts[-1].isdecimal():  # one of a list: data.prepare.inputs.0
            parts = parts[:-1]
        value: Any = own
        for part in parts:
            value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            raise UsageError(f"the recipe given names no {key}, which the bundle was made of; use --set {key}=PATH")
        put(content, ".".join(parts), value)
