"""`edgeft init DIR --template NAME`."""

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
        write_atomic(target, source.read_bytes())
    return targets
