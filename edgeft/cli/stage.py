"""`edgeft data|train|merge RECIPE`: run a recipe up to one stage."""

from pathlib import Path
from typing import Any

import click

from edgeft.cli._options import json_option, set_option, workdir_option
from edgeft.cli.run import run_recipe


def command(name: str, text: str) -> click.Command:
    """The click command that runs a recipe until stage `name`."""

    @click.command(name, help=f"{text} Earlier stages run first where they are not up to date.")
    @click.argument("recipe", type=click.Path(path_type=Path))
    @click.option("--force", is_flag=True, help="Make this stage again.")
    @set_option
    @workdir_option
    @json_option
    def stage_command(recipe: Path, force: bool, **options: Any) -> None:
        run_until(recipe, name, force=force, **options)

    return stage_command


def run_until(path: Path, stage: str, *, force: bool, overrides: tuple[str, ...], workdir: Path, as_json: bool) -> None:
    """Run the recipe at `path` up to `stage`; `train` of a pre-training recipe is its `pretrain` stage."""
    from edgeft.cli._options import load_recipe

    if stage == "train" and load_recipe(path, overrides).pretrain is not None:
        stage = "pretrain"
    run_recipe(
        path,
        until=stage,
        force=(stage,) if force else (),
        overrides=overrides,
        workdir=workdir,
        as_json=as_json,
    )
