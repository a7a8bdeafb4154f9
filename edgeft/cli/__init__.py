"""The `edgeft` command: parse, call one function, print. Only click is imported until a command is chosen."""

import errno
import os
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, TextIO

import click

from edgeft import __version__
from edgeft.errors import EdgeftError, WriteRefused
from edgeft.interrupts import Interrupted, exit_code, terminable
from edgeft.machine.silence import no_telemetry

WRITES_ONLY = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
OF_THE_USER = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EIO)
"""What an operating system says of a path the user gave, whether it was read or written."""
PLACES = ("-o", "--out", "--output", "--html", "--junit", "--markdown", "--workdir")
"""Options that say where something is written; the one given on the line is named first, else the first there is."""
# name -> (module under edgeft.cli, help). The help stands here so that `edgeft --help` imports no command.
COMMANDS = {
    "init": ("init", "Write a recipe, for your examples or with sample data."),
    "run": ("run", "Run a recipe: make all that is not up to date."),
    "runs": ("runs", "List the runs there are, or watch a running one."),
    "data": ("data", "Import, check, split, redact and prepare data."),
    "train": ("stage", "Fine-tune (or pre-train) the recipe's model."),
    "merge": ("stage", "Fold the adapter into the base model."),
    "export": ("export", "Make GGUF files, from a recipe or a model folder."),
    "inspect": ("inspect", "Show what a model file says about itself."),
    "import": ("import_", "Make a model folder of a GGUF file."),
    "imatrix": ("imatrix", "Collect an importance matrix for quantization."),
    "parity": ("parity", "Compare exported files with the model they come from."),
    "bench": ("bench", "Measure accuracy and speed of a model file."),
    "chat": ("chat", "Talk to a model at the terminal, or ask it one question."),
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
        from edgeft.cli._examples import with_examples

        return with_examples(import_module(f"edgeft.cli.{module}").command(cmd_name, text), cmd_name)

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
    """Run the command line and exit: 0 fine, 1 error, 2 wrong usage, 3 a budget is not met, 130 interrupted (143 by
    SIGTERM, 129 by SIGHUP)."""
    no_telemetry()
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    said = Said(sys.stdout)
    if "--json" in words:
        sys.stdout = said  # type: ignore[assignment]
    try:
        with terminable():
            code = edgeft.main(words, prog_name="edgeft", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = _told(error, error.format_message(), error.exit_code, said)
    except (EdgeftError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output (`| head`) went away
            os.dup2(os.open(os.devnull, os.O_WRONLY), said.stream.fileno())
            sys.exit(1)
        told = explained(error, words)
        if debug or told is None:
            raise
        click.echo(_painted(f"error: {told}"), err=True)
        code = _told(error, told, getattr(error, "exit_code", 1), said)
    except (click.Abort, KeyboardInterrupt) as error:
        if debug:
            raise
        cause = error.__cause__ or error  # click turns the interrupt into an Abort
        text = _interrupted(cause, words)
        click.echo(text, err=True)
        code = _told(cause, text, exit_code(cause), said)
    finally:
        sys.stdout = said.stream
    sys.exit(code if isinstance(code, int) else 0)


def _painted(text: str) -> str:
    from edgeft.cli._output import coloured, has_colour

    return coloured(text) if has_colour(sys.stderr) else text


class Said:
    """A stream that knows whether anything was written to it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.anything = stream, False

    def write(self, text: str) -> int:
        self.anything = self.anything or bool(text)
        return self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _told(error: BaseException, message: str, code: int, said: Said) -> int:
    """With --json, tell a program of the error too, unless its results are there (a gate that failed)."""
    if sys.stdout is said and not said.anything:
        import json

        kind = type(error).__name__
        print(json.dumps({"error": {"kind": kind, "message": message, "exit_code": code}}, ensure_ascii=False))
    return code


def explained(error: Exception, words: Sequence[str]) -> str | None:
    """The message for people, with the option of this command that names another place; None for a bug of ours."""
    if isinstance(error, OSError):
        from edgeft.artifact import write_refused

        if error.errno in WRITES_ONLY:
            return explained(write_refused(error, Path(error.filename or ".")), words)
        return f"{error.filename}: {error.strerror}" if error.errno in OF_THE_USER and error.filename else None
    if not isinstance(error, WriteRefused):
        return str(error)
    option = _place_option(words)
    return f"{error}{f' ({option} names it)' if option and 'another place' in str(error) else ''}"


def _place_option(words: Sequence[str]) -> str | None:
    """The option by which the command these words call says where it writes."""
    command: click.Command | None = edgeft
    for word in words:
        if not isinstance(command, click.Group):
            break
        if not word.startswith("-"):
            command = command.get_command(click.Context(command), word)
    names = {name for parameter in command.params for name in parameter.opts} if command else set()
    given = [name for name in PLACES if name in names and any(word.split("=")[0] == name for word in words)]
    return next(iter(given or [name for name in PLACES if name in names]), None)


def _interrupted(error: BaseException, words: Sequence[str]) -> str:
    """What is kept, and the line that goes on; work that is not kept begins again."""
    line = shlex.join(["edgeft", *words])
    kept = error.kept if isinstance(error, Interrupted) else ()
    return f"interrupted; kept: {'; '.join(kept)}\nto go on: {line}" if kept else f"interrupted; to begin again: {line}"
