"""`edgeft init DIR --template NAME`."""

import re
from pathlib import Path

import click

TEMPLATES = Path(__file__).parent.parent / "templates"
NAMES = ("tool-calls", "classify", "extract")


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft init`."""

    @click.command(name, help=text)
    @click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
    @click.option("--template", type=click.Choice(NAMES), default=NAMES[0], show_default=True)
    def init_command(folder: Path, template: str) -> None:
        for path in write_template(template, folder):
            click.echo(path)
        click.echo(f"next: put your own examples there, then: edgeft run {folder / 'recipe.yaml'}", err=True)

    return init_command


def write_template(template: str, folder: Path) -> list[Path]:
    """Copy the template's files into `folder`; returns them.

    Raises UsageError, and writes nothing, when one of them is already there.
    """
    from edgeft.artifact import write_atomic
    from edgeft.errors import UsageError

    sources = sorted(path for path in (TEMPLATES / template).iterdir() if path.is_file())
    targets = [folder / source.name for source in sources]
    if there := [str(target) for target in targets if target.exists()]:
        raise UsageError(f"already there, not overwritten: {', '.join(there)}; choose another folder")
    for source, target in zip(sources, targets, strict=True):
        text = source.read_text(encoding="utf-8")
        if source.name == "recipe.yaml":
            text = re.sub(r"(?m)^name: .*$", f"name: {run_name(folder, template)}", text, count=1)
        write_atomic(target, text)
    return targets


def run_name(folder: Path, otherwise: str) -> str:
    """The folder's name as that of a run: lower case, what a name may not hold as `-`; `otherwise` if none is left."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", folder.absolute().name.lower()).strip("._-")
    return plain if plain and plain != "store" else otherwise
