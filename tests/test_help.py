"""The examples in the help texts: every command has two, every one is understood, and all that are quick are run."""

import contextlib
import io
import re
import shlex
import sys
from pathlib import Path

import click
import pytest

from edgeft.bundle.contents import Extras
from edgeft.bundle.pack import pack
from edgeft.bundle.run import read_run
from edgeft.cli import COMMANDS, edgeft, main
from edgeft.cli._examples import EXAMPLES
from edgeft.cli.data import COMMANDS as DATA
from tests.bundle.handmade import make_run
from tests.lively import make_lively_llama

LINES = [line for lines in EXAMPLES.values() for line in lines]
# Not run here: what trains, measures for minutes, or waits for someone.
LONG = ("run", "data prepare", "train", "merge", "parity", "compare", "reproduce", "export mytask", "bench runs",
        "chat runs", "report")  # fmt: skip
FIRST = (EXAMPLES["init"][0], EXAMPLES["export"][1], EXAMPLES["keygen"][0])  # make what others take
RUN = [line for line in LINES if line not in FIRST]
RUN = [line for line in RUN if "--dry-run" in line or not re.search(rf"edgeft ({'|'.join(LONG)})\b", line)]


def leaves() -> list[str]:
    names = [name for name in COMMANDS if name not in ("data", "recipe")]
    return [*names, *(f"data {name}" for name in DATA), "recipe show", "recipe schema"]


def words_of(line: str) -> list[str]:
    """What comes behind the word `edgeft`, without pipes and redirections."""
    words = shlex.split(line.split("|")[-1].split(" > ")[0])
    assert words[0] == "edgeft"
    return words[1:]


def found(words: list[str]) -> tuple[click.Command, click.Context, list[str]]:
    """The command that `words` call, a context for it, and the words behind its name."""
    command: click.Command = edgeft
    context = click.Context(edgeft, info_name="edgeft")
    while isinstance(command, click.Group):
        command = command.get_command(context, words[0]) or pytest.fail(f"no command {words[0]}")
        context = click.Context(command, info_name=words[0], parent=context)
        words = words[1:]
    return command, context, words


def test_every_command_has_two() -> None:
    assert sorted(EXAMPLES) == sorted(leaves())
    assert {len(lines) for lines in EXAMPLES.values()} == {2}


@pytest.mark.parametrize("name", EXAMPLES)
def test_they_stand_in_the_help(name: str) -> None:
    command, context, _ = found(name.split())
    text = command.get_help(context)
    assert text.rstrip().endswith("Examples:\n" + "\n".join(f"    {line}" for line in EXAMPLES[name]))


@pytest.mark.parametrize("line", LINES)
def test_each_is_understood(line: str) -> None:
    """Options, their values and the number of arguments are those of the command: click reads them all."""
    name = next(name for name, lines in EXAMPLES.items() if line in lines)
    words = words_of(line)
    assert " ".join(words[: len(name.split())]) == name
    command, _, rest = found(words)
    command.make_context(name, rest)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the examples have it: a project, a run with a real small model, bundles, files and keys."""
    folder = tmp_path_factory.mktemp("examples")
    with contextlib.chdir(folder):
        make_lively_llama(folder / "model", max_position_embeddings=1024)
        for line in FIRST:
            with pytest.raises(SystemExit) as ended:
                main(words_of(line))
            assert ended.value.code in (0, None)
        run = make_run(folder / "runs" / "mytask", model=(folder / "files" / "model-Q8_0.gguf").read_bytes())
        for name, key in (("old", None), ("mytask", None), ("signed", folder / "release.key")):
            pack(read_run(run), folder / f"{name}.edgeft", Extras(), key=key)
        lines = (folder / "mytask" / "train.jsonl").read_text()
        (folder / "all.jsonl").write_text(lines * 4)
        (folder / "questions.csv").write_text(
            "question,answer\n" + "".join(f"where is number {i},card\nwhen is number {i},time\n" for i in range(20))
        )
        (folder / "page.txt").write_text("A page of text. " * 200)
    return folder


@pytest.mark.parametrize("line", RUN)
def test_each_that_is_quick_runs(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("EDGEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"where is my card")))
    words = words_of(line)
    if "mytask.edgeft" in words and words[0] == "pack":
        words.append("--force")
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code in (0, None) or words[0] == "doctor"  # which says what this machine lacks


@pytest.mark.parametrize(
    ("words", "shown", "hidden"),
    [
        (["export"], ["-o, --output", "--n-threads"], ["--out ", "--threads"]),
        (["import"], ["-o, --output"], ["--out "]),
        (["imatrix"], ["-o, --output"], ["--out "]),
        (["pack"], ["-o, --output"], ["--out "]),
        (["bench"], ["-o, --output", "--n-prompts"], ["--out ", " --prompts"]),
        (["compare"], ["-o, --output"], ["--out "]),
        (["parity"], ["--data"], ["--prompts"]),
        (["inspect"], ["--timeout-s"], ["--timeout "]),
    ],
)
def test_one_name_for_one_thing_and_the_earlier_ones_still_work(
    words: list[str], shown: list[str], hidden: list[str]
) -> None:
    command, context, _ = found(words)
    text = command.get_help(context)
    assert all(name in text for name in shown)
    assert not any(name in text for name in hidden)
    names = {name for parameter in command.params for name in parameter.opts}
    assert {name.strip() for name in hidden} <= names
