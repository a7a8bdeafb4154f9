"""The `edgeft` command: parse, call one function, print. Only click is imported until a command is chosen."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from edgeft import __version__
from edgeft.errors import EdgeftError
from edgeft.machine.silence import no_telemetry

INTERRUPTED = 130

# name -> (module under edgeft.cli, help). The help stands here so that `edgeft --help` imports no command.
COMMANDS = {
    "init": ("init", "Write a recipe and sample data to start from."),
    "run": ("run", "Run a recipe: make all that is not up to date."),
    "data": ("data", "Import, check, split, redact and prepare data."),
    "train": ("stage", "Fine-tune (or pre-train) the recipe's model."),
    "merge": ("stage", "Fold the adapter into the base model."),
    "export": ("export", "Make GGUF files, from a recipe or a model folder."),
    "inspect": ("inspect", "Show what a model file says about itself."),
    "import": ("import_", "Make a model folder of a GGUF file."),
    "imatrix": ("imatrix", "Collect an importance matrix for quantization."),
    "parity": ("parity", "Compare exported files with the model they come from."),
    "bench": ("bench", "Measure accuracy and speed of a model file."),
    "compare": ("compare", "Say which of two files is faster, or that neither is."),
    "gate": ("gate", "Judge measurements against budgets."),
    "report": ("report", "Show what a run measured."),
    "pack": ("pack", "Make a bundle of a run, or a folder another program loads."),
    "verify": ("verify", "Check a bundle's files and who signed it."),
    "unpack": ("verify", "Write a bundle as a folder, once it is checked."),
    "diff": ("diff", "Say what differs between two bundles or GGUF files."),
    "reproduce": ("reproduce", "Run a bundle's recipe again and compare the bytes."),
    "keygen": ("keygen", "Make a key pair to sign bundles with."),
    "doctor": ("doctor", "Say what this machine can do, and what is broken."),
    "recipe": ("recipe", "Show a recipe in full, or the schema of recipes."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, text = COMMANDS[cmd_name]
        command: click.Command = import_module(f"edgeft.cli.{module}").command(cmd_name, text)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            ctx.fail(f"No command {args[0]!r}.{hint} Commands: {', '.join(COMMANDS)}.")
        return super().resolve_command(ctx, args)


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgeft")
@click.option("--debug", is_flag=True, help="Show the traceback of an error (anywhere on the line).")
def edgeft(debug: bool) -> None:
    """From chat-format JSONL to a small quantized model file you can ship and prove.

    Start with `edgeft init DIR`, then `edgeft run DIR/recipe.yaml`.
    """


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 fine, 1 error, 2 wrong usage, 3 a budget is not met, 130 interrupted."""
    no_telemetry()
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        code = edgeft.main(words, prog_name="edgeft", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except EdgeftError as error:
        if debug:
            raise
        click.echo(f"error: {error}", err=True)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        if debug:
            raise
        click.echo(f"interrupted; to go on: edgeft {' '.join(words)}", err=True)
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of our output (`| head`) went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code if isinstance(code, int) else 0)
