"""`edgeft data ...`: everything done to data before a model is loaded."""

from importlib import import_module
from typing import Any

import click

from edgeft.cli._examples import with_examples

# name -> (module under edgeft.cli, help)
COMMANDS = {
    "import": ("data_import", "Convert a file to canonical chat JSONL."),
    "check": ("data_check", "Find what is wrong with data files."),
    "preview": ("data_preview", "Show a conversation as the model sees it, what is learned in colour."),
    "split": ("data_split", "Divide a file into train, validation and test."),
    "redact": ("data_redact", "Replace personal data by surrogates."),
    "stats": ("data_stats", "Count tokens, and estimate steps, time, memory and price."),
    "prepare": ("stage", "Check and tokenize the data of a recipe."),
}


class DataGroup(click.Group):
    """A group that imports a subcommand when it is used; `edgeft data RECIPE` is `edgeft data prepare RECIPE`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, text = COMMANDS[cmd_name]
        stage = "data" if cmd_name == "prepare" else cmd_name
        return with_examples(import_module(f"edgeft.cli.{module}").command(stage, text), f"data {cmd_name}")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            args = ["prepare", *args]
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def command(name: str, text: str) -> click.Command:
    """The group `edgeft data`."""

    @click.command(name, cls=DataGroup, help=text)
    def data_group(**_: Any) -> None:
        pass

    return data_group
