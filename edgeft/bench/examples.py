"""Test examples: chat JSONL as the device sees it, without the checks of `edgeft.data`."""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from edgeft.bench.tool_calls import calls_text
from edgeft.conversation.canonical import canonical_row
from edgeft.errors import DataError

T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """One test example: the conversation up to the answer, the answer, and the tools offered (if any).

    The answer of a message that calls tools and says nothing is those calls as JSON, see `tool_calls.calls_text`.
    `fields` holds whatever else the line says of the example, for slices.
    """

    prompt: tuple[dict[str, Any], ...]
    answer: str
    tools: tuple[dict[str, Any], ...] | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    reply: Mapping[str, Any] | None = None

    @property
    def message(self) -> Mapping[str, Any]:
        """The answer as the chat message it is."""
        return self.reply or {"role": "assistant", "content": self.answer}


def digest(examples: Sequence[Example]) -> str:
    """Sha256, in hex, of prompts, answers and tools: what two measurements must share to be paired."""
    rows = [[example.prompt, example.answer, example.tools] for example in examples]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def read_examples(path: Path) -> list[Example]:
    """Read chat JSONL, one example a line; blank lines do not count.

    A line is `{"messages": [..., {"role": "assistant", "content": TEXT}], "tools": [...] or absent}`; the last message
    may have `tool_calls` in place of a text. Raises DataError, with the line number, for a line that is not such an
    object, and for a file without examples. Older forms of tool data are read as in training.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; convert it first") from None
    examples = [_example(line, f"{path}:{n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not examples:
        raise DataError(f"{path}: no examples; give a file with at least one line of chat JSON")
    return examples


def take(examples: Sequence[T], limit: int | None, seed: int) -> list[T]:
    """At most `limit` examples (None: all), drawn by `seed` without replacement, in their order."""
    if limit is None or limit >= len(examples):
        return list(examples)
    return [examples[i] for i in sorted(random.Random(seed).sample(range(len(examples)), limit))]


def _example(line: str, where: str) -> Example:
    try:
        content = json.loads(line)
        content = canonical_row(content) if isinstance(content, dict) else content
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error})") from None
    except RecursionError:
        raise DataError(f"{where}: nested too deeply to be read") from None
    messages = content.get("messages") if isinstance(content, dict) else None
    if not isinstance(messages, list) or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise DataError(f'{where}: needs "messages", a list of objects with "role" and "content"')
    last = messages[-1] if messages else {}
    answer = _answer(last)
    if answer is None:
        raise DataError(f"{where}: the last message must be the assistant's answer, a text")
    if len(messages) < 2:
        raise DataError(f"{where}: nothing comes before the assistant's answer")
    tools = content.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise DataError(f"{where}: tools is neither a list nor the JSON text of one")
    fields = {name: value for name, value in content.items() if name not in ("messages", "tools")}
    reply = last if last.get("tool_calls") else None
    return Example(tuple(messages[:-1]), answer, tuple(tools) if tools else None, fields, reply)


def _answer(message: Mapping[str, Any]) -> str | None:
    if message.get("role") != "assistant":
        return None
    text, calls = message.get("content"), message.get("tool_calls")
    if isinstance(calls, list) and calls and (text is None or text == ""):
        return calls_text(calls)
    return text if isinstance(text, str) else None
