"""A teacher's answers, one JSON object a line, written as they come: what a second run does not ask again.

{"key": sha256 of settings and question, "question": {messages, tools}, "answer": text, ...what the teacher sent}
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeft.artifact import refused_writes
from edgeft.data.chat import Example
from edgeft.errors import DataError
from edgeft.machine.locks import locked


class AnswerLog:
    """The file `path`, for answers given under `settings` (who answers, and how); others in it are left alone.

    A line that a kill cut short is taken off. Raises DataError when another line cannot be read.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, dict(settings)
        with refused_writes(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            _cut_unfinished(path)
        self.records = {record["key"]: record for record in _read(path)}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Wait until no other run adds to the file, and take in what it added."""
        with ExitStack() as held:
            with refused_writes(self.path):
                held.enter_context(locked(self.path.with_name(self.path.name + ".lock")))
            self.records = {record["key"]: record for record in _read(self.path)}
            yield

    def find(self, question: Mapping[str, Any]) -> dict[str, Any] | None:
        """The record of this question under these settings, or None."""
        return self.records.get(self._key(question))

    def add(self, question: Mapping[str, Any], answer: str, **fields: Any) -> None:
        """Write a record; it is on the disk when this returns."""
        record = {"key": self._key(question), "question": dict(question), "answer": answer, **fields}
        line = json.dumps(record, ensure_ascii=False) + "\n"
        with refused_writes(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.records[record["key"]] = record

    def _key(self, question: Mapping[str, Any]) -> str:
        return hashlib.sha256(json.dumps([self.settings, question], sort_keys=True).encode()).hexdigest()


def question_of(example: Example) -> dict[str, Any]:
    """The conversation of an example up to its last answer, where it has one, and the tools it may call."""
    tools = example.extra.get("tools")
    return {"messages": example.question, **({"tools": tools} if tools else {})}


def with_record(example: Example, record: Mapping[str, Any]) -> Example | None:
    """The example with a recorded last answer, its words and its calls; None where the teacher gave neither."""
    calls = record.get("tool_calls")
    answer = {"role": "assistant", "content": record["answer"], **({"tool_calls": calls} if calls else {})}
    if not calls and not record["answer"].strip():
        return None
    return replace(example, messages=[*example.question, answer])


def with_answers(examples: Sequence[Example], answers: Sequence[str]) -> list[Example]:
    """The examples with these last answers; what the teacher left empty is left out."""
    return [
        Example([*e.question, {"role": "assistant", "content": answer}], e.path, e.line, e.extra)
        for e, answer in zip(examples, answers, strict=True)
        if answer.strip()
    ]


def _cut_unfinished(path: Path) -> None:
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


def _read(path: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
            record["key"], record["answer"]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}:{number}: not an answer edgeft recorded; mend or remove the line") from None
        records.append(record)
    return records
