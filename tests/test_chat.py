"""Talking to a model: what is kept, what commands do, what a script gets."""

import io
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgeft.bundle.defaults import run_defaults, training_habits
from edgeft.bundle.run import read_run
from edgeft.cli import main
from edgeft.cli._talk import Talk, converse, printable
from edgeft.errors import RuntimeFault
from edgeft.runtime.model import Answer, Classification, ToolCall
from tests.bundle.handmade import SYSTEM, make_run, stage
from tests.lively import make_lively_llama


class Stream:
    """An answer of two pieces, as `AnswerStream`."""

    def __init__(self, text: str, calls: Sequence[ToolCall], fails: bool) -> None:
        self.pieces, self.fails = [text[:2], text[2:]], fails
        self.answer = Answer(text, "stop", 7, 3, tuple(calls), 1.5)

    def __iter__(self) -> Any:
        yield self.pieces[0]
        if self.fails:
            raise RuntimeFault("the model failed")
        yield self.pieces[1]

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Echo:
    """Says how many messages it was given, and remembers them."""

    def __init__(self) -> None:
        self.seen: list[list[dict[str, Any]]] = []
        self.options: dict[str, Any] = {}

    def chat(self, messages: list[dict[str, Any]], **options: Any) -> Stream:
        self.seen.append(messages)
        self.options = options
        calls = [ToolCall("light", {"on": True})] if options["tools"] else []
        return Stream(f"{len(messages)} messages", calls, messages[-1]["content"] == "fail")

    def classify(self, texts: list[str]) -> list[Classification]:
        return [Classification("on", {"on": 0.9, "off": 0.1}) for _ in texts]


def roles(messages: list[dict[str, Any]]) -> str:
    return " ".join(message["role"][0] for message in messages)


def test_a_conversation_is_kept_until_it_is_reset(capsys: pytest.CaptureFixture[str]) -> None:
    model = Echo()
    lines = ["hello", "and now", "", "/reset", "again", "/system Be brief.", "hm", "/system", "/history off", "one",
             "two", "/nonsense", "/quit", "never asked"]  # fmt: skip
    converse(Talk(model, system="s", options={"seed": 3}), iter(lines))
    assert [roles(messages) for messages in model.seen] == ["s u", "s u a u", "s u", "s u", "s u", "s u"]
    assert [messages[0]["content"] for messages in model.seen[2:4]] == ["s", "Be brief."]
    assert model.options == {"tools": None, "stream": True, "overflow": "truncate_left", "seed": 3}
    out, err = capsys.readouterr()
    assert out.splitlines()[:2] == ["2 messages", "4 messages"]
    for said in ("forgotten", "Be brief.", "every question stands alone", "/nonsense: no such command", "3 tokens"):
        assert said in err


def test_a_question_that_fails_is_forgotten_and_the_talk_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    model = Echo()
    talk = Talk(model, tools=[{"name": "light"}])
    converse(talk, iter(["fail", "hello"]))
    assert [roles(messages) for messages in model.seen] == ["u", "u"]
    err = capsys.readouterr().err
    assert "error: the model failed" in err
    assert "calls light {'on': True}" in err


def test_a_classifier_says_its_label_and_how_sure_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    converse(Talk(Echo(), classifies=True), iter(["turn it on"]))
    out, err = capsys.readouterr()
    assert (out, err) == ("on\n", "on 0.900, off 0.100\n")


def test_a_model_cannot_command_the_terminal() -> None:
    assert printable("a\x1b[31mb\n\tc\x07") == "a·[31mb\n\tc·"


def test_a_run_brings_what_it_was_trained_with(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "home"))
    defaults = run_defaults(run)
    assert (defaults.system, defaults.n_ctx, dict(defaults.options)) == (
        SYSTEM, 256, {"temperature": 0.0, "max_new_tokens": 8},
    )  # fmt: skip
    assert training_habits(run).single
    tools = [{"type": "function", "function": {"name": "f"}}]
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant")]
    lines = json.dumps({"messages": turns, "tools": tools}) + "\n"
    stage(tmp_path / "home", "data", {"train.jsonl": lines.encode()}, {}, {})
    habits = training_habits(read_run(tmp_path / "home", whole=False))
    assert (habits.tools, habits.single) == (tools, False)


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose file is a real model of a few weights."""
    from edgeft.console import silent_log
    from edgeft.export.gguf import write_gguf

    folder = tmp_path_factory.mktemp("chat")
    source = make_lively_llama(folder / "model", max_position_embeddings=1024)
    write_gguf(source, folder / "m.gguf", ftype="F32", name="m", provenance={}, log=silent_log())
    return make_run(folder / "runs" / "home", model=(folder / "m.gguf").read_bytes())


def asked(arguments: list[str], question: bytes, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(question)))
    with pytest.raises(SystemExit) as ended:
        main(["chat", *arguments])
    return int(ended.value.code or 0)


def test_a_script_asks_one_question(
    lively: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked([str(lively), "--json"], b"turn on\n", monkeypatch) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n_new"] <= 8
    assert asked([str(lively)], b"turn on", monkeypatch) == 0
    assert capsys.readouterr().out.rstrip("\n") == found["text"]


@pytest.mark.parametrize(
    ("arguments", "question", "code", "words"),
    [
        ([], b"", 2, "standard input is empty"),
        ([], b"\xff\xfe\xfd", 2, "not UTF-8"),
        (["--tools", "nope.json"], b"q", 2, "--tools nope.json: cannot be read"),
        (["--schema", "list.json"], b"q", 2, "--schema list.json: needs an object"),
        (["--tools", "numbers.json"], b"q", 2, "every tool is a JSON object"),
    ],
)
def test_what_cannot_be_asked(
    lively: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    question: bytes,
    code: int,
    words: str,
) -> None:
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "numbers.json").write_text("[1]")
    monkeypatch.chdir(tmp_path)
    assert asked([str(lively), *arguments], question, monkeypatch) == code
    assert words in " ".join(capsys.readouterr().err.split())


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal of Unix")
def test_at_a_terminal(lively: Path) -> None:
    """A real terminal: prompt, an answer, a command, and the end."""
    import pty

    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "edgeft", "chat", str(lively)], stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = ""
    try:
        for wanted, line in (("> ", "hello"), ("tokens, the first after", "/system"), (SYSTEM, "/quit")):
            said = read_until(ours, said, wanted)
            os.write(ours, f"{line}\n".encode())
        assert child.wait(60) == 0
    finally:
        child.kill()
        os.close(ours)
    assert "every question stands alone" in said


def read_until(terminal: int, said: str, wanted: str, limit_s: float = 120.0) -> str:
    end = time.monotonic() + limit_s
    while wanted not in said.partition("leaves")[2]:
        assert time.monotonic() < end, said
        if select.select([terminal], [], [], 1.0)[0]:
            said += os.read(terminal, 4096).decode(errors="replace")
    return said
