"""`edgeft chat RUN|BUNDLE|FILE`: talk to a model at the terminal, or answer one question from standard input."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeft.cli._options import json_option
from edgeft.cli._output import print_json

if TYPE_CHECKING:
    from edgeft.cli._talk import Talk
    from edgeft.runs import Found

FILE = click.Path(path_type=Path, dir_okay=False)
ANSWER = ("max_new_tokens", "temperature", "seed")
PLACE = ("n_ctx", "n_threads", "n_gpu_layers")


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft chat`."""

    @click.command(
        name,
        help=f"{text}\n\nTARGET is a run's folder (the file that ships), a bundle, or a model file or folder. A run "
        "and a bundle bring the system prompt, tools and lengths of their training. When standard input is no "
        "terminal, all of it is one question, and the answer goes to standard output.",
    )
    @click.argument("target", type=click.Path(path_type=Path))
    @click.option("--system", metavar="TEXT", help='System prompt; "" for none. [that of the training data]')
    @click.option("--tools", type=FILE, help="JSON list of tools that may be called. [those of the training data]")
    @click.option("--schema", type=FILE, help="JSON Schema that every answer follows.")
    @click.option("--history/--no-history", default=None, help="Keep what was said. [as the training data has it]")
    @click.option("--max-new-tokens", type=click.IntRange(1), help="Longest answer, in tokens.")
    @click.option("--temperature", type=click.FloatRange(0), help="0: always the most likely token.")
    @click.option("--seed", type=int, help="Seed of sampling.")
    @click.option("--n-ctx", type=click.IntRange(8), help="Context window, in tokens.")
    @click.option("--n-threads", type=click.IntRange(1), help="CPU threads.")
    @click.option("--n-gpu-layers", type=click.IntRange(-1), help="Layers llama.cpp puts on a GPU; -1: all.")
    @json_option
    def chat_command(target: Path, as_json: bool, **given: Any) -> None:
        from edgeft.runs import find_model

        typed = sys.stdin.isatty()
        if as_json and typed:
            raise click.UsageError(f"--json answers one question: echo 'a question' | edgeft chat {target} --json")
        found = find_model(target)
        question = None if typed else _question()
        talk = _open(found, **given)
        with talk.model:
            if question is None:
                _talk(talk, target)
            else:
                _answer(talk, question, as_json)

    return chat_command


def _open(
    found: "Found",
    *,
    system: str | None,
    tools: Path | None,
    schema: Path | None,
    history: bool | None,
    **given: Any,
) -> "Talk":
    """The model that was found, with what is given, else what its run or bundle brings."""
    from edgeft.bundle.defaults import Habits, run_defaults, training_habits
    from edgeft.bundle.run import read_run
    from edgeft.cli._talk import Talk
    from edgeft.errors import UsageError
    from edgeft.runtime import load
    from edgeft.runtime.defaults import Defaults
    from edgeft.runtime.encoder_folder import is_encoder

    offered, follows = _tools(tools), _read(schema, "--schema", dict, "an object")
    classifies = is_encoder(found.model)
    own, habits = Defaults(), Habits()
    if found.run is not None and not classifies:
        try:
            run = read_run(found.run, whole=False)
        except UsageError:  # a folder without what was trained: the file alone
            pass
        else:
            own, habits = run_defaults(run), training_habits(run)
    options = {key: given[key] for key in ANSWER if given[key] is not None}
    place = {key: given[key] for key in PLACE if given[key] is not None}
    if found.bundle is None:
        model: Any = load(found.model, **({"n_ctx": own.n_ctx} if own.n_ctx else {}) | place)
        model.defaults = own
    else:
        model = load(found.bundle.path, **place)
    if follows is not None:
        options["schema"] = follows
    default: str | None = getattr(model.defaults, "system", None) if hasattr(model, "defaults") else None
    if hasattr(model, "defaults"):
        model.defaults = model.defaults._replace(system=None)  # said by Talk, which can change it
    return Talk(
        model,
        classifies,
        default if system is None else system or None,
        offered if tools else habits.tools,
        options,
        not habits.single if history is None else history,
    )


def _talk(talk: "Talk", target: Path) -> None:
    from edgeft.cli._talk import converse, typed_lines

    said = [f"{target}: labels" if talk.classifies else f"{target}"]
    if talk.system:
        said.append(f"system prompt: {talk.system}")
    if talk.tools:
        said.append(f"tools: {', '.join(str(tool.get('function', tool).get('name')) for tool in talk.tools)}")
    if not talk.keeps_history and not talk.classifies:
        said.append("every question stands alone, as in the training data (/history on keeps what was said)")
    click.echo("\n".join([*said, "/help shows the commands, Ctrl-D leaves"]), err=True)
    converse(talk, typed_lines())


def _answer(talk: "Talk", question: str, as_json: bool) -> None:
    from edgeft.cli._talk import printable

    def write(piece: str) -> None:
        if not as_json:
            click.echo(printable(piece) if sys.stdout.isatty() else piece, nl=False)

    found = talk.ask(question, write)
    if as_json:
        print_json(found)
    else:
        click.echo()
        if found.get("finish_reason") == "length":
            click.echo("the answer was cut by the length limit (--max-new-tokens, --n-ctx)", err=True)


def _question() -> str:
    """All of standard input, as one question."""
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise click.UsageError("the question on standard input is not UTF-8 text") from None
    if not text:
        raise click.UsageError("standard input is empty; write a question to it, or use a terminal")
    return text


def _tools(path: Path | None) -> list[dict[str, Any]] | None:
    found: list[dict[str, Any]] | None = _read(path, "--tools", list, "a list")
    if found is not None and not all(isinstance(tool, dict) for tool in found):
        raise click.UsageError(f"--tools {path}: every tool is a JSON object with a name and parameters")
    return found


def _read(path: Path | None, option: str, kind: type, words: str) -> Any:
    """The JSON file of an option. Raises a usage error for what is none."""
    if path is None:
        return None
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise click.UsageError(f"{option} {path}: cannot be read ({error}); give a JSON file") from None
    if not isinstance(content, kind):
        raise click.UsageError(f"{option} {path}: needs {words}, as JSON")
    return content
