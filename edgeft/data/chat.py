"""Chat JSONL: reading it, line by line, and refusing what cannot be learned from.

Format: one JSON object a line with `messages`, a list of {"role", "content"}; the last message is the
assistant's answer. Other fields of the object are kept. This is the file hosted chat fine-tuning takes. Older and
packed forms of tool data (`function_call`, `tools` as text, …) become the one form of `edgeft.conversation.canonical`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeft.conversation.canonical import canonical_row, is_older, undecodable
from edgeft.data.surrogates import unusable_place
from edgeft.errors import DataError, EdgeftError

ROLES = ("system", "developer", "user", "assistant", "tool")
SHOWN_PROBLEMS = 20
IMPORT = "`edgeft data import {path} -o OUT` writes what it can read of it as chat JSONL"


@dataclass(frozen=True)
class Example:
    """One conversation and where it stands; `extra` are the line's other fields, `older` the form its tools had."""

    messages: list[dict[str, Any]]
    path: Path
    line: int
    extra: dict[str, Any]
    older: str = field(default="", compare=False)

    @property
    def answer(self) -> str:
        """The last message, the assistant's."""
        return str(self.messages[-1]["content"])

    @property
    def question(self) -> list[dict[str, Any]]:
        """The messages before the last answer, which need not be there."""
        return self.messages[:-1] if self.messages[-1]["role"] == "assistant" else self.messages

    def canonical(self) -> str:
        """One JSON line, messages first."""
        return json.dumps({"messages": self.messages, **self.extra}, ensure_ascii=False)


@contextmanager
def named_line(path: Path, line: int) -> Iterator[None]:
    """Put `file:line` before the message of any error of ours."""
    try:
        yield
    except EdgeftError as error:
        raise type(error)(f"{path}:{line}: {error}") from error


def conversation_key(messages: Sequence[Mapping[str, Any]]) -> str:
    """The same for conversations that differ in case and spacing alone."""
    return "\x1e".join(f"{m['role']}\x1f{' '.join(m['content'].lower().split())}" for m in messages)


def read_chat(path: Path) -> list[Example]:
    """Every example of a file. Blank lines are skipped.

    Raises DataError naming file:line and the problem of every bad line (the first 20 shown), or that the
    file is missing, not UTF-8, or holds no example.
    """
    return _read(path, parse_line)


def read_questions(path: Path) -> list[Example]:
    """Every conversation of a file up to the assistant's turn that is wanted; one that is there is left out.

    Raises DataError like `read_chat`.
    """
    return _read(path, parse_question)


def _read(path: Path, parse: Callable[[str, Path, int], Example]) -> list[Example]:
    examples: list[Example] = []
    problems: list[str] = []
    for number, text in _lines(path):
        if not text.strip():
            continue
        try:
            examples.append(parse(text, path, number))
        except DataError as error:
            problems.append(str(error))
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        shown = problems[:SHOWN_PROBLEMS] + ([f"… and {more} more lines"] if more > 0 else [])
        raise DataError("\n".join([*shown, "mend or remove these lines; nothing was trained"]))
    if not examples:
        raise DataError(f"{path}: no example in this file")
    return examples


def parse_line(text: str, path: Path, number: int) -> Example:
    """One line as an Example. Raises DataError as `file:line: problem`."""
    example, where = _parse_messages(text, path, number), f"{path}:{number}"
    messages = example.messages
    if messages[-1]["role"] != "assistant":
        has_one = any(m["role"] == "assistant" for m in messages)
        problem = "the last message is not the assistant's" if has_one else "no assistant turn to learn from"
        raise DataError(f"{where}: {problem}")
    if all(message.get("weight") == 0 for message in messages if message["role"] == "assistant"):
        raise DataError(f"{where}: every answer has weight 0: there is nothing to learn")
    if not messages[-1]["content"].strip() and not messages[-1].get("tool_calls"):
        raise DataError(f"{where}: the assistant's answer is empty")
    return example


def parse_question(text: str, path: Path, number: int) -> Example:
    """One line as an Example without the last answer. Raises DataError as `file:line: problem`."""
    example = _parse_messages(text, path, number)
    if not example.question or example.question[-1]["role"] not in ("user", "tool"):
        raise DataError(f"{path}:{number}: no user's message that the teacher could answer")
    return Example(example.question, path, number, example.extra, example.older)


def _parse_messages(text: str, path: Path, number: int) -> Example:
    where = f"{path}:{number}"
    try:
        row = json.loads(text.rstrip("\r\n"))  # a column is that of the line
    except json.JSONDecodeError as error:
        array = f": a file of one JSON array? {IMPORT.format(path=path)}" if text.strip() in ("[", "[{") else ""
        raise DataError(f"{where}: not JSON: {error.msg} at column {error.colno}{array}") from error
    except RecursionError:
        raise DataError(f"{where}: nested too deeply to be read") from None
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
        raise DataError(f'{where}: not an object with a "messages" list; {IMPORT.format(path=path)}')
    if what := unusable_place(row):
        raise DataError(f"{where}: {what}")
    older, row = is_older(row), canonical_row(row)
    messages = row.pop("messages")
    if not messages:
        raise DataError(f"{where}: messages is empty")
    for at, message in enumerate(messages):
        _check_message(message, f"{where}: messages[{at}]", path)
    if problem := next(undecodable(messages, row.get("tools")), ""):
        raise DataError(f"{where}: {problem}")
    return Example(messages, path, number, row, older)


def _check_message(message: Any, where: str, path: Path) -> None:
    if not isinstance(message, dict):
        raise DataError(f"{where} is not an object")
    if message.get("role") not in ROLES:
        raise DataError(f"{where}.role is {message.get('role')!r}; known roles: {', '.join(ROLES)}")
    if isinstance(message.get("content"), list):
        raise DataError(f"{where}.content is a list of parts, not a string; {IMPORT.format(path=path)}")
    if not isinstance(message.get("content"), str):
        raise DataError(f"{where}.content is not a string")
    weight = message.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise DataError(f"{where}.weight is {weight!r}; write 0 (not learned) or 1 (learned)")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                yield number, line
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{number + 1}: not UTF-8 ({error.reason}); save it as UTF-8, or convert it: edgeft data import "
            f"{path} --encoding NAME -o NEW.jsonl"
        ) from error
