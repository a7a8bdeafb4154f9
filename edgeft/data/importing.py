"""`edgeft data import`: any known shape to canonical chat JSONL (or back to another shape)."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgeft.artifact import writing
from edgeft.data import formats
from edgeft.data.reading import Problem, Reading
from edgeft.data.sources import STDIN
from edgeft.errors import DataError


@dataclass(frozen=True)
class Imported:
    """What an import did: rows written, what the source held that the result does not, rows left out."""

    format: str
    written: int
    losses: Counter[str]
    problems: list[Problem]


def import_examples(reading: Reading, out: Path, to: str = "chat") -> Imported:
    """Write the examples of `reading` to `out` (`-` for stdout), one JSON object a line.

    Raises DataError when nothing could be read or the disk refuses; `out` then stays as it was.
    """
    shape = formats.by_name(to)
    written = 0
    with _output(out) as file:
        for line, example in reading.examples:
            try:
                text = encode(shape.write(example, reading.losses))
            except formats.Unreadable as error:
                reading.problems.append(Problem(reading.path, line, f"not written as {to}: {error}"))
                continue
            except ValueError:
                what = "it holds NaN or Infinity, which JSON has not; write null or a number"
                reading.problems.append(Problem(reading.path, line, what))
                continue
            file.write(text + "\n")
            written += 1
        if not written:
            shown = "\n".join(str(problem) for problem in reading.problems[:20])
            raise DataError(shown or f"{reading.path}: no example in this file")
    return Imported(reading.format, written, reading.losses, reading.problems)


def encode(row: formats.Row) -> str:
    """One line of JSON Lines; text as it is, but lone surrogates escaped, which no UTF-8 file can hold. Raises
    ValueError for NaN and Infinity, which JSON has not."""
    text = json.dumps(row, ensure_ascii=False, default=str, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(row, default=str)
    return text


@contextmanager
def _output(out: Path) -> Iterator[IO[str]]:
    if out == STDIN:
        import sys

        yield sys.stdout
        return
    with writing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield file
