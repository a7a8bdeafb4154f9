"""`edgeft data redact`: personal data in the turns replaced by surrogates, nothing else touched.

A surrogate says what it stands for and keeps values apart: <EMAIL_ADDRESS_1> is the same address everywhere in
the file. Inside JSON (answers, tool arguments) only string values change, so that what parsed still parses
with the same keys. Roles, names of tools, and fields beside the messages (labels) stay as they are.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeft.artifact import writing
from edgeft.console import Log
from edgeft.data import formats
from edgeft.data.importing import encode
from edgeft.data.pii import FORMS, KINDS, find_personal_data
from edgeft.data.reading import Problem, Reading
from edgeft.errors import DataError, UsageError


@dataclass
class Redacted:
    """What was found and replaced, by kind; `different` counts values."""

    examples: int = 0
    changed: int = 0
    found: Counter[str] = field(default_factory=Counter)
    different: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For --json; holds no personal data."""
        return {
            "examples": self.examples,
            "changed": self.changed,
            "found": dict(self.found),
            "different": dict(self.different),
            "left_out": [str(problem) for problem in self.problems],
        }


def chosen_kinds(text: str | None, ner: str | None) -> tuple[str, ...]:
    """Kinds from `A,B`, or all that can be found. Raises UsageError for an unknown one."""
    if text is None:
        return KINDS if ner else FORMS
    kinds = tuple(kind.strip().upper() for kind in text.split(","))
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"--kinds: unknown kind {kind}; known: {', '.join(KINDS)}")
    return kinds


def redact_examples(reading: Reading, out: Path, kinds: tuple[str, ...], ner: str | None, log: Log) -> Redacted:
    """Write the examples as canonical chat JSONL to `out`. Raises DataError when there is none."""
    done, surrogates = Redacted(), Surrogates(kinds, ner)
    with writing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for _, example in reading.examples:
            before = encode(example)
            after = encode(redact_example(example, surrogates))
            file.write(after + "\n")
            done.examples += 1
            done.changed += before != after
            if done.examples % 1000 == 0:
                log.say(f"{done.examples} examples")
        if not done.examples:
            raise DataError("\n".join(map(str, reading.problems[:20])) or f"{reading.path}: no example in this file")
    done.found, done.different = surrogates.found, surrogates.different
    done.problems = reading.problems
    return done


class Surrogates:
    """Replaces what is found in a text, the same value by the same surrogate."""

    def __init__(self, kinds: tuple[str, ...], ner: str | None = None) -> None:
        self.kinds, self.ner = kinds, ner
        self.found: Counter[str] = Counter()
        self.different: Counter[str] = Counter()
        self._names: dict[tuple[str, str], str] = {}

    def replace(self, text: str) -> str:
        """`text` with surrogates."""
        pieces, at = [], 0
        for one in find_personal_data(text, self.ner):
            if one.kind in self.kinds:
                pieces += [text[at : one.start], self._name(one.kind, text[one.start : one.end])]
                at = one.end
        return "".join([*pieces, text[at:]])

    def _name(self, kind: str, value: str) -> str:
        """Spacing and case do not make another value."""
        key = kind, "".join(letter for letter in value.lower() if letter.isalnum() or letter in "@.")
        self.found[kind] += 1
        if key not in self._names:
            self.different[kind] += 1
            self._names[key] = f"<{kind}_{self.different[kind]}>"
        return self._names[key]


def redact_example(example: formats.Example, surrogates: Surrogates) -> formats.Example:
    """A copy with the texts of messages, tool arguments and rejected answers redacted."""
    copy = dict(example)
    for name in ("messages", "rejected"):
        if isinstance(copy.get(name), list):
            copy[name] = [_redacted(message, surrogates.replace) for message in copy[name]]
    return copy


def _redacted(message: dict[str, Any], replace: Callable[[str], str]) -> dict[str, Any]:
    copy = message | {"content": redact_text(message["content"], replace)}
    if isinstance(message.get("tool_calls"), list):
        copy["tool_calls"] = [_redacted_call(call, replace) for call in message["tool_calls"]]
    return copy


def _redacted_call(call: Any, replace: Callable[[str], str]) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or "arguments" not in function:
        return call
    arguments = function["arguments"]
    arguments = redact_text(arguments, replace) if isinstance(arguments, str) else _values(arguments, replace)
    return call | {"function": function | {"arguments": arguments}}


def redact_text(text: str, replace: Callable[[str], str]) -> str:
    """Plain text is replaced as it stands; in JSON only string values, and only if one holds something."""
    if text[:1] in ("{", "["):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return replace(text)
        clean = _values(value, replace)
        return text if clean == value else json.dumps(clean, ensure_ascii=False)
    return replace(text)


def _values(value: Any, replace: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return replace(value)
    if isinstance(value, list):
        return [_values(one, replace) for one in value]
    if isinstance(value, dict):
        return {key: _values(one, replace) for key, one in value.items()}
    return value
