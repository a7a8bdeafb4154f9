"""Any data file as examples in the one in-memory form: `read_examples` is the door to it.

Which shape a file has is seen from its first rows, unless a format or a column map says so.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from edgeft.data import formats, sources, tables
from edgeft.data.encodings import MIXED, UTF8, encoding_of
from edgeft.data.formats import Example, Format, Losses, Row, Unreadable
from edgeft.errors import DataError, UsageError

DETECTION_ROWS = 50
MISSING = " is missing: read as null"
MAPPED = ("prompt", "completion", "system", "label", "chosen", "rejected")


@dataclass(frozen=True)
class Problem:
    """A row that is no example: where, and why."""

    path: Path
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}"


@dataclass
class Reading:
    """A file being read. `losses` and `problems` fill up while `examples` is consumed; `notes` say how it was read."""

    path: Path
    format: str
    examples: Iterator[tuple[int, Example]]
    losses: Losses = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_examples(
    path: Path,
    format_name: str | None = None,
    columns: dict[str, str] | None = None,
    encoding: str = "utf-8-sig",
    delimiter: str | None = None,
) -> Reading:
    """Open `path` and say what it is; (line, example) then stream from `.examples`.

    `columns` maps prompt, completion, system or label to a column, a dotted path or `a+b` (an object of several).
    `encoding` "auto" is the one the file seems to be in, told in `.notes` where it is not UTF-8; `delimiter` is of
    a CSV file (None: as seen from its rows).
    Raises DataError when the file cannot be read or its shape is not recognised, UsageError for a bad format.
    """
    found = encoding_of(path, encoding)
    records = rows(path, found.name, delimiter)
    mapper = column_mapper(columns) if columns else None
    first = list(islice(records, DETECTION_ROWS))
    shape = formats.by_name(format_name) if format_name else None
    if mapper is not None:
        shape = shape or formats.by_name("dpo" if "chosen" in (columns or {}) else "prompt-completion")
    if shape is None:
        shape = formats.detect([row for _, row in first if isinstance(row, dict)])
    if shape is None:
        raise DataError(_unrecognised(path, first))
    reading = Reading(path, shape.name, iter(()))
    if found.lines:
        reading.losses["lines with bytes that are not UTF-8: read as Windows-1252"] += len(found.lines)
    elif found.name not in (UTF8, encoding):
        reading.notes.append(f"read as {found.name}, as its letters or its first bytes tell")
    reading.examples = _examples(chain(first, records), shape, mapper, reading)
    return reading


def parse_columns(texts: tuple[str, ...]) -> dict[str, str]:
    """`prompt=question` pairs as a dict. Raises UsageError."""
    columns = {}
    for text in texts:
        name, equals, column = text.partition("=")
        if name not in MAPPED or not equals or not column:
            raise UsageError(f"--map {text!r}: write NAME=COLUMN with NAME one of {', '.join(MAPPED)}")
        columns[name] = column
    return columns


def column_mapper(columns: dict[str, str]) -> Callable[[Row, Losses], Row]:
    """A function that gives a row our column names. Columns of text move; others are copied and stay."""

    def apply(row: Row, losses: Losses) -> Row:
        mapped: Row = {}
        left = dict(row)
        for name, column in columns.items():
            value = _pick(row, column, losses)
            if isinstance(value, str) and column in row:
                left.pop(column, None)
            mapped[name] = value if isinstance(value, str) or name in ("chosen", "rejected") else _dump(value)
        system = mapped.pop("system", None)
        if system:
            mapped["prompt"] = [{"role": "system", "content": system}, {"role": "user", "content": mapped["prompt"]}]
        return mapped | {name: value for name, value in left.items() if name not in mapped}

    return apply


def parse_json(raw: bytes, encoding: str = "utf-8-sig") -> Any:
    """The value of one record. Raises Unreadable with a reason a person can act on."""
    try:
        return json.loads(raw.decode(encoding))
    except UnicodeDecodeError as error:
        raise Unreadable(
            f"not UTF-8 at byte {error.start} ({error.reason}); save it as UTF-8 or name its --encoding"
        ) from None
    except json.JSONDecodeError as error:
        raise Unreadable(f"not JSON: {error.msg} at column {error.colno}") from None
    except (RecursionError, ValueError) as error:
        raise Unreadable(f"not JSON that can be read: {error}") from None


def rows(
    path: Path, encoding: str = "utf-8-sig", delimiter: str | None = None
) -> Iterator[tuple[int, Row | Unreadable]]:
    """(line, row), with an Unreadable in the place of a row that is none. `delimiter` of a CSV file; None: as seen.

    Raises DataError when the file cannot be read, or is of another kind than its name says.
    """
    kind = sources.container(path)
    if kind == "parquet":
        yield from sources.parquet_rows(path)
        return
    if kind == "xlsx":
        yield from tables.workbook_rows(path)
        return
    with sources.open_bytes(path) as file:
        if path != sources.STDIN and path.suffix != ".zst" and encoding in (UTF8, "utf-8"):
            head = file.read(16)
            file.seek(0)
            if seen := tables.kind_seen(head):
                raise DataError(f"{path}: this is {seen}, not {kind.upper()} text in UTF-8")
        if kind not in ("csv", "tsv") and encoding not in (UTF8, "utf-8", MIXED):
            file, encoding = sources.as_utf8(file, path, encoding), UTF8
        if kind in ("csv", "tsv"):
            yield from tables.csv_rows(file, path, delimiter or ("\t" if kind == "tsv" else None), encoding)
        elif kind == "txt":
            yield from sources.text_rows(file, path, encoding)
        else:
            records = sources.json_records(file, path)
            if kind == "json":
                yield from _documents(records, encoding)
            else:
                yield from (_row(record, encoding) for record in records)


def _documents(records: Iterator[sources.Record], encoding: str) -> Iterator[tuple[int, Row | Unreadable]]:
    """Rows of a .json file: an array's elements, one object over many lines, or JSON Lines under that name."""
    first = next(records, None)
    if first is None:
        return
    opening = _row(first, encoding)
    if not isinstance(opening[1], Unreadable):
        yield from _intents(*opening)
        yield from (_row(record, encoding) for record in records)
        return
    rest = list(records)
    whole = _row((first[0], b"\n".join([first[1], *(raw for _, raw in rest)])), encoding)
    if isinstance(whole[1], Unreadable) and "UTF-8" not in str(whole[1]):
        yield opening
        yield from (_row(record, encoding) for record in rest)
    else:
        yield from _intents(*whole)


def _intents(line: int, row: Row | Unreadable) -> Iterator[tuple[int, Row | Unreadable]]:
    """SNIPS keeps an intent's rows in an object under the intent's name; its rows get the name beside them, and
    their number as line."""
    if isinstance(row, dict) and row and all(_is_intent(value) for value in row.values()):
        named = ((intent, one) for intent, rows in row.items() for one in rows)
        for number, (intent, one) in enumerate(named, 1):
            yield number, {"intent": intent, **one}
    else:
        yield line, row


def _is_intent(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) and isinstance(one.get("data"), list) for one in value)


def _row(record: sources.Record, encoding: str) -> tuple[int, Row | Unreadable]:
    line, raw = record
    try:
        value = parse_json(raw, encoding)
    except Unreadable as error:
        return line, error
    return line, value if isinstance(value, dict) else Unreadable(f"a {type(value).__name__}, not an object")


def _examples(
    rows: Iterator[tuple[int, Row | Unreadable]],
    shape: Format,
    mapper: Callable[[Row, Losses], Row] | None,
    reading: Reading,
) -> Iterator[tuple[int, Example]]:
    total = 0
    columns: list[str] = []
    for line, row in rows:
        total += 1
        if isinstance(row, dict) and not columns:
            columns = list(row)
        try:
            if isinstance(row, Unreadable):
                raise row
            for example in shape.read(mapper(row, reading.losses) if mapper else row, reading.losses):
                yield line, example
        except Unreadable as error:
            reading.problems.append(Problem(reading.path, line, str(error)))
    for what, n in reading.losses.items():
        if n == total and what.startswith("column ") and what.endswith(MISSING):
            raise DataError(
                f"{reading.path}: no row has the {what.removesuffix(MISSING)}; the columns of this "
                f"{sources.container(reading.path).upper()} file are: {', '.join(columns)}"
            )


def _pick(row: Row, column: str, losses: Losses) -> Any:
    if "+" in column:
        return {name: _pick(row, name, losses) for name in column.split("+")}
    value: Any = row
    for part in [column] if column in row else column.split("."):
        if not isinstance(value, dict) or part not in value:
            losses[f"column {column}{MISSING}"] += 1
            return None
        value = value[part]
    return value


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _unrecognised(path: Path, first: list[tuple[int, Row | Unreadable]]) -> str:
    if not first:
        return f"{path}: no example in this file"
    line, row = next(((line, row) for line, row in first if isinstance(row, dict)), first[0])
    if isinstance(row, Unreadable):
        return f"{path}:{line}: {row}"
    names = ", ".join(islice(row, 12))
    return (
        f"{path}:{line}: the shape of the data is not recognised; its columns are: {names}. Name the columns with "
        f"--map prompt=COLUMN --map completion=COLUMN, or the format with --format"
    )
