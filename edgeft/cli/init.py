"""`edgeft init DIR --data FILE`, or `edgeft init DIR --template NAME`."""

import re
from pathlib import Path
from typing import Any

import click

from edgeft.cli._data import format_options

TEMPLATES = Path(__file__).parent.parent / "templates"
NAMES = ("tool-calls", "classify", "extract")
NANO = "edgeft/nano"


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft init`."""

    @click.command(name, help=text)
    @click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
    @click.option("--data", type=click.Path(path_type=Path), help="Your examples, in any form `data import` reads.")
    @click.option("--base", default=NANO, show_default=True, help="The model to start from, with --data.")
    @click.option("--group", metavar="FIELD", help="With --data: examples with one value of it stay on one side.")
    @click.option("--template", type=click.Choice(NAMES), help=f"Without --data: an example task. [{NAMES[0]}]")
    @format_options
    def init_command(folder: Path, data: Path | None, template: str | None, **given: Any) -> None:
        from edgeft.errors import UsageError

        if data is None:
            changed = [name for name in ("base", "group") if given[name] not in (None, NANO)]
            if changed:
                raise UsageError(f"--{changed[0]} goes with --data FILE; a template's recipe is edited by hand")
            for path in write_template(template or NAMES[0], folder):
                click.echo(path)
            click.echo(f"next: put your own examples there, then: edgeft run {folder / 'recipe.yaml'}", err=True)
            return
        if template is not None:
            raise UsageError("give --data FILE or --template NAME, not both")
        draft_recipe(folder, data, **given)

    return init_command


def draft_recipe(
    folder: Path,
    data: Path,
    *,
    base: str,
    group: str | None,
    format_name: str | None,
    columns: tuple[str, ...],
    encoding: str,
) -> None:
    """Draft a recipe for `data` in `folder`; say what was seen, what was chosen and what comes next.

    Raises UsageError, and writes nothing, when a file is already there or the base is no folder.
    """
    from edgeft.data.reading import parse_columns, read_examples
    from edgeft.draft.writing import FILES
    from edgeft.extras import extra_needed

    _refuse_existing([folder / name for name in FILES])
    written, base_folder = _base(base, folder)
    reading = read_examples(data, format_name, parse_columns(columns), encoding)
    with extra_needed("data"), extra_needed("train"):
        from edgeft.draft.drafting import draft, encoder_at_hand

        done = draft(
            reading, folder, name=run_name(folder, "mytask"), base=written, base_folder=base_folder, group=group
        )
    for path in done.files:
        click.echo(path)
    counts = ", ".join(f"{done.counts.get(split, 0):,} {split}" for split in ("train", "validation", "test"))
    said = [f"{data}: {done.seen.sentence()}; {counts}", *done.notes]
    encoder = encoder_at_hand() if done.seen.task == "labels" and base == NANO else None
    if encoder is not None:
        said.append(
            f"an encoder is at hand, and for labels mostly better: edgeft init OTHER_DIR --data {data} --base {encoder}"
        )
    recipe = folder / "recipe.yaml"
    said.append(f"next: edgeft run {recipe} --dry-run (what it takes), then: edgeft run {recipe}")
    click.echo("\n".join(said), err=True)


def _base(base: str, folder: Path) -> tuple[str, Path]:
    """The base as a recipe in `folder` names it, and the folder of its files. Raises UsageError."""
    import os

    from edgeft.errors import UsageError
    from edgeft.recipe import NANO_FOLDER

    if base == NANO:
        return base, NANO_FOLDER
    path = Path(base)
    if not path.is_dir():
        raise UsageError(f"--base {base}: no such folder; give {NANO} or a Hugging Face model folder")
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix(), path


def write_template(template: str, folder: Path) -> list[Path]:
    """Copy the template's files into `folder`; returns them.

    Raises UsageError, and writes nothing, when one of them is already there.
    """
    from edgeft.artifact import write_atomic

    sources = sorted(path for path in (TEMPLATES / template).iterdir() if path.is_file())
    targets = [folder / source.name for source in sources]
    _refuse_existing(targets)
    for source, target in zip(sources, targets, strict=True):
        text = source.read_text(encoding="utf-8")
        if source.name == "recipe.yaml":
            text = re.sub(r"(?m)^name: .*$", f"name: {run_name(folder, template)}", text, count=1)
        write_atomic(target, text)
    return targets


def _refuse_existing(targets: list[Path]) -> None:
    from edgeft.errors import UsageError

    if there := [str(target) for target in targets if target.exists()]:
        raise UsageError(f"already there, not overwritten: {', '.join(there)}; choose another folder")


def run_name(folder: Path, otherwise: str) -> str:
    """The folder's name as that of a run: lower case, what a name may not hold as `-`; `otherwise` if none is left."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", folder.absolute().name.lower()).strip("._-")
    return plain if plain and plain != "store" else otherwise
