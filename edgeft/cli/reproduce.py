"""`edgeft reproduce BUNDLE`: run its recipe again and compare the bytes."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeft.cli._bundles import bundle_argument, key_option, signature_check
from edgeft.cli._options import json_option, set_option
from edgeft.cli._output import print_json, table
from edgeft.errors import NotReproduced

if TYPE_CHECKING:
    from edgeft.bundle.reproduce import Reproduction


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft reproduce`."""

    @click.command(name, help=f"{text}\n\nInputs must have the content they had; where they are is yours to say.")
    @bundle_argument
    @click.option("--workdir", type=click.Path(path_type=Path), required=True, help="New folder to run in.")
    @click.option("--recipe", type=click.Path(path_type=Path), help="Recipe to take the paths of inputs from.")
    @set_option
    @key_option
    @json_option
    def reproduce_command(
        bundle: Path, workdir: Path, recipe: Path | None, overrides: tuple[str, ...], key: Path | None, as_json: bool
    ) -> None:
        import tempfile

        from edgeft.bundle.reproduce import packed_recipe, refuse_foreign, reproduce
        from edgeft.console import terminal_log
        from edgeft.quiet import quiet_libraries
        from edgeft.runtime.bundle import open_bundle

        refuse_foreign(workdir)
        quiet_libraries()
        with tempfile.TemporaryDirectory(prefix="edgeft-") as cache:
            opened = open_bundle(bundle, Path(cache), signature_check(key))
            found = reproduce(opened, packed_recipe(opened, recipe, overrides), workdir, terminal_log())
        _show(found, as_json)
        if not found.same:
            raise NotReproduced(f"{bundle}: the files came out different; above are the stages where it began")

    return reproduce_command


def _show(found: "Reproduction", as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "same": found.same,
                "model_files": found.model_files,
                "stages": found.files,
                "changes": list(found.changes),
            }
        )
        return
    rows = [(name, "same" if same else "DIFFERENT") for name, same in found.model_files.items()]
    for stage, files in found.files.items():
        different = [name for name, same in files.items() if not same]
        shown = f"different: {', '.join(different[:3])}{', …' if len(different) > 3 else ''}" if different else "same"
        rows.append((f"stage {stage}", f"{len(files) - len(different)} of {len(files)} files the same; {shown}"))
    click.echo(table(("file", ""), rows))
