"""Tables as people save them: CSV with any of the usual delimiters, and Excel workbooks; and what a file is by its
first bytes, whatever its name says."""

import csv
import io
from collections.abc import Iterator
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, BinaryIO

from edgeft.errors import DataError
from edgeft.extras import extra_needed

DELIMITERS = (",", ";", "\t", "|")
NAMED = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
SNIFFED_CHARACTERS = 1 << 16
SNIFFED_ROWS = 50
LONGEST_FIELD_BYTES = 256 << 20
MAGIC = (
    (b"PK\x03\x04", "a zip archive or an Office file, such as an Excel workbook (.xlsx)"),
    (b"\xd0\xcf\x11\xe0", "an old Office file, such as .xls; save it as .xlsx or CSV"),
    (b"\x1f\x8b", "packed by gzip; name it .gz"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd; name it .zst"),
    (b"PAR1", "a Parquet file; name it .parquet"),
    (b"%PDF", "a PDF"),
    (b"SQLite format 3", "a SQLite database"),
    (b"GGUF", "a GGUF model file"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
)
WORKBOOK = ".xlsx"


def kind_seen(head: bytes) -> str:
    """What a file that begins with `head` is, in words; empty when it may be the text its name promises."""
    return next((words for magic, words in MAGIC if head.startswith(magic)), "")


def csv_rows(file: BinaryIO, path: Path, delimiter: str | None, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a CSV file with a header; `delimiter` None is seen from the first rows.

    Raises DataError on a ragged row or text in another encoding; it says the delimiter and columns that were seen.
    """
    csv.field_size_limit(LONGEST_FIELD_BYTES)
    text = io.TextIOWrapper(file, encoding=encoding, newline="")
    line = 1
    try:
        head = text.read(SNIFFED_CHARACTERS)
        used = delimiter or sniff(head)
        reader = csv.reader(_with_head(head, text), delimiter=used, strict=True)
        header = next(reader, None)
        if not header or len(set(header)) < len(header):
            raise DataError(
                f"{path}:1: a CSV file starts with a header of different column names; seen, with the delimiter "
                f"{NAMED.get(used, used)}: {', '.join(header or []) or 'nothing'}"
            )
        line = reader.line_num + 1
        for row in reader:
            if row:
                if len(row) != len(header):
                    raise DataError(
                        f"{path}:{line}: {len(row)} fields where the header has {len(header)} (delimiter "
                        f"{NAMED.get(used, used)}, columns {', '.join(header)}); quote a field that holds the "
                        "delimiter, or name another with --delimiter"
                    )
                yield line, dict(zip(header, row, strict=True))
            line = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not {encoding} after line {line}: {error.reason}; save it as UTF-8 or name its --encoding"
        ) from error
    except csv.Error as error:
        raise DataError(f"{path}:{line}: not CSV: {error}") from error
    finally:
        text.detach()


def sniff(head: str) -> str:
    """The delimiter that cuts the first rows into the most columns, the same in each row; a comma where none does."""
    best, most = ",", 1
    for delimiter in DELIMITERS:
        try:
            rows = [row for row in csv.reader(io.StringIO(head, newline=""), delimiter=delimiter) if row]
        except csv.Error:
            continue
        whole = rows[:SNIFFED_ROWS] if len(rows) <= 2 or len(head) < SNIFFED_CHARACTERS else rows[: SNIFFED_ROWS - 1]
        widths = [len(row) for row in whole]
        if widths and widths[0] > most and sum(width == widths[0] for width in widths) >= 0.9 * len(widths):
            best, most = delimiter, widths[0]
    return best


def workbook_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of the first sheet of an Excel workbook (.xlsx), whose first row names the columns; the line is the row's
    number. Dates become ISO 8601 text, an empty cell null, a formula the value it last had."""
    with extra_needed("data"):
        import openpyxl
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except Exception as error:  # zipfile's, lxml's and openpyxl's own: whatever is wrong, the file is none
        raise DataError(f"{path}: not a readable Excel workbook: {error}") from error
    try:
        rows = book.worksheets[0].iter_rows(values_only=True)
        header = [str(cell).strip() if cell is not None else "" for cell in next(rows, ())]
        while header and not header[-1]:
            header.pop()
        if not header or "" in header or len(set(header)) < len(header):
            raise DataError(
                f"{path}:1: the first row of the first sheet must name every column, each by another name; seen: "
                f"{', '.join(header) or 'nothing'}"
            )
        for number, row in enumerate(rows, 2):
            cells = [_cell(cell) for cell in row[: len(header)]]
            if any(cell is not None for cell in cells):
                yield number, dict(zip(header, cells, strict=False))
    finally:
        book.close()


def _with_head(head: str, rest: io.TextIOWrapper) -> Iterator[str]:
    """Lines of the text whose beginning is read already; the last of these may go on in the rest."""
    lines = list(io.StringIO(head, newline=""))
    last = lines.pop() if lines else ""
    yield from lines
    following = next(rest, "")
    if last.endswith("\n") or (last.endswith("\r") and following != "\n"):
        yield last
        last = ""
    if last or following:
        yield last + following
    yield from rest


def _cell(value: Any) -> Any:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
