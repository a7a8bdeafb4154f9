"""A conversation with a model at the terminal: what was said, and the commands that begin with a slash."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

HELP = """/reset          forget the conversation
/system TEXT    set the system prompt, and forget the conversation; without TEXT show it
/history on|off keep what was said, or let every question stand alone
/help           show these commands
/quit           leave; so does Ctrl-D. Ctrl-C stops an answer"""
CHOICES_SHOWN = 5
Write = Callable[[str], None]


@dataclass
class Talk:
    """What is kept between questions. `model` is as `edgeft.runtime.load` gives it; `classifies`: it has labels and
    no words. `options` are those of `Model.chat`."""

    model: Any
    classifies: bool = False
    system: str | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    keeps_history: bool = True
    turns: list[dict[str, Any]] = field(default_factory=list)

    def ask(self, question: str, write: Write) -> dict[str, Any]:
        """Answer a question, piece by piece to `write`; the whole answer as plain data. Raises what the runtime does,
        and forgets the question then."""
        return self._classified(question, write) if self.classifies else self._answered(question, write)

    def command(self, line: str) -> str | None:
        """What a line that begins with a slash says; None to leave."""
        word, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if word in ("/quit", "/exit", "/bye"):
            return None
        if word == "/reset":
            self.turns.clear()
            return "forgotten"
        if word == "/system":
            return self._system(rest)
        if word == "/history" and rest in ("on", "off"):
            self.keeps_history = rest == "on"
            self.turns.clear()
            return "what was said is kept" if self.keeps_history else "every question stands alone"
        return HELP if word == "/help" else f"{line.strip()}: no such command\n{HELP}"

    def _system(self, text: str) -> str:
        if not text:
            return self.system or "no system prompt"
        self.system = text
        self.turns.clear()
        return "system prompt set; the conversation begins again"

    def _answered(self, question: str, write: Write) -> dict[str, Any]:
        earlier = self.turns if self.keeps_history else []
        turns = [*earlier, {"role": "user", "content": question}]
        system = [{"role": "system", "content": self.system}] if self.system else []
        with self.model.chat(
            [*system, *turns], tools=self.tools, stream=True, overflow="truncate_left", **self.options
        ) as stream:
            for piece in stream:
                write(piece)
            answer = stream.answer
        if self.keeps_history:
            self.turns = [*turns, {"role": "assistant", "content": answer.text}]
        calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in answer.tool_calls]
        return {
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "tool_calls": calls,
            "n_prompt": answer.n_prompt,
            "n_new": answer.n_new,
            "ttft_ms": answer.ttft_ms,
        }

    def _classified(self, question: str, write: Write) -> dict[str, Any]:
        found = self.model.classify([question])[0]
        likely = dict(list(found.probabilities.items())[:CHOICES_SHOWN])
        write(found.label or "(no label is likely enough)")
        return {"label": found.label, "probabilities": likely}


def printable(text: str) -> str:
    """`text` without what a terminal would obey: a model may write anything."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "·" for letter in text)


def converse(talk: Talk, lines: Iterator[str]) -> None:
    """Answer line after line until they end or one says so. Errors of a question are shown, and it goes on."""
    from edgeft.errors import EdgeftError

    for line in lines:
        if not line.strip():
            continue
        if line.startswith("/"):
            said = talk.command(line)
            if said is None:
                return
            click.echo(said, err=True)
            continue
        try:
            found = talk.ask(line, lambda piece: click.echo(printable(piece), nl=False))
            click.echo()
            click.echo(click.style(remarks(found), dim=True), err=True)
        except KeyboardInterrupt:
            click.echo("\n(stopped)", err=True)
        except EdgeftError as error:
            click.echo(f"error: {error}", err=True)


def remarks(found: Mapping[str, Any]) -> str:
    """What there is to say about an answer besides its text."""
    if "label" in found:
        return ", ".join(f"{label} {probability:.3f}" for label, probability in found["probabilities"].items())
    parts = [f"calls {call['name']} {call['arguments']}" for call in found["tool_calls"]]
    if found["finish_reason"] == "length":
        parts.append("cut by the length limit (--max-new-tokens, --n-ctx)")
    return "; ".join([*parts, f"{found['n_new']} tokens, the first after {found['ttft_ms']:.0f} ms"])


def typed_lines() -> Iterator[str]:
    """Lines typed at a prompt, with the keys of readline where Python has it; they are not kept on disk."""
    try:
        import readline  # noqa: F401  # gives `input` its history and editing
    except ImportError:  # Windows
        pass
    while True:
        try:
            if sys.stdout.isatty():
                yield input("> ")
            else:
                click.echo("> ", nl=False, err=True)
                yield input()
        except EOFError:
            click.echo(err=True)
            return
