"""The commands README shows exist, with the options it gives them."""

import re
import shlex
from pathlib import Path

import click
import pytest

from edgeft.cli import COMMANDS, edgeft
from edgeft.recipe_reader import recipe_from_text

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
LINES = [line for language, text in BLOCKS if language == "bash" for line in text.splitlines()]
EDGEFT_LINES = [line for line in LINES if line.startswith("edgeft ")]


@pytest.mark.parametrize("line", EDGEFT_LINES)
def test_a_command_line_parses(line: str) -> None:
    words = shlex.split(line.split(" > ")[0], comments=True)[1:]
    context = click.Context(edgeft, info_name="edgeft")
    command = edgeft.get_command(context, words.pop(0))
    while isinstance(command, click.Group):
        command = command.get_command(context, words.pop(0))
    assert command is not None
    command.make_context(command.name, words, resilient_parsing=False)


def test_every_command_is_shown() -> None:
    shown = {line.split()[1] for line in EDGEFT_LINES}
    assert shown - set(COMMANDS) == set()
    assert set(COMMANDS) - shown <= {"data", "train", "merge"}  # stages, named in the text


def test_the_recipe_reads() -> None:
    (text,) = (text for language, text in BLOCKS if language == "yaml")
    assert recipe_from_text(text, README).name == "mytask"


def test_make_targets_exist() -> None:
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake ([a-z]+)", "\n".join(LINES)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
