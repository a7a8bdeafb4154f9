"""Bytes of data files as records: JSON Lines, JSON arrays, CSV, Parquet, plain text; .gz, .zst and stdin.

Everything streams: a JSON array is cut into its elements without being held whole. A record is
(line, bytes or row); the line is where it starts in the file, counted from 1.
"""

import codecs
import gzip
import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from edgeft.errors import DataError
from edgeft.extras import extra_needed

STDIN = Path("-")
BLOCK_BYTES = 1 << 20
LONGEST_RECORD_BYTES = 256 << 20
ABSENT_IF_NULL = ("tools", "parallel_tool_calls", "rejected", "rejected_from")
SYNTAX = re.compile(rb'["\\{}\[\],]')

Record = tuple[int, bytes]


def container(path: Path) -> str:
    """How the file's records are held, by its name: jsonl, json, csv, tsv, xlsx, parquet or txt ("jsonl" for stdin)."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in (".gz", ".zst"):
        suffixes.pop()
    kinds = {".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".txt": "txt", ".xlsx": "xlsx"}
    return kinds.get(suffixes[-1], "jsonl") if suffixes else "jsonl"


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked; `-` is stdin. Raises DataError when it cannot be read."""
    try:
        if path == STDIN:
            yield sys.stdin.buffer
        elif path.suffix == ".gz":
            with gzip.open(path) as unpacked:
                yield unpacked  # type: ignore[misc]
        elif path.suffix == ".zst":
            zstandard = _optional("zstandard")
            with path.open("rb") as packed, zstandard.ZstdDecompressor().stream_reader(packed) as unpacked:
                yield io.BufferedReader(unpacked)
        else:
            with path.open("rb") as file:
                yield file
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except Exception as error:
        if type(error).__name__ in ("ZstdError", "error"):  # zstandard's and zlib's, which share no base
            raise DataError(f"{path}: damaged: {error}") from error
        raise


def json_records(file: BinaryIO, path: Path) -> Iterator[Record]:
    """Records of JSON Lines or of a JSON array, whichever the first character says. Blank lines are skipped."""
    first = _first_byte(file)
    if first.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[" and container(path) == "json":
        yield from _array_elements(first, file, path)
        return
    for number, line in enumerate(_lines(first, file, path), 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line and not line.isspace():
            yield number, line


def as_utf8(file: BinaryIO, path: Path, encoding: str) -> BinaryIO:
    """`file` in UTF-8, whatever it is in: records are cut at bytes that other encodings have inside a character.

    Raises DataError, when read, on bytes that are none of the encoding.
    """
    return io.BufferedReader(_Recoded(file, path, encoding), BLOCK_BYTES)


class _Recoded(io.RawIOBase):
    """A stream of text in one encoding, read as UTF-8."""

    def __init__(self, file: BinaryIO, path: Path, encoding: str) -> None:
        self.file, self.path, self.encoding = file, path, encoding
        self.decoder = codecs.getincrementaldecoder(encoding)()
        self.ready, self.n_read, self.ended = b"", 0, False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready and not self.ended:
            block = self.file.read(BLOCK_BYTES // 4)
            self.ended = not block
            try:
                self.ready = self.decoder.decode(block, final=self.ended).encode()
            except UnicodeError as error:
                raise DataError(
                    f"{self.path}: not {self.encoding} near byte {self.n_read}: {getattr(error, 'reason', error)}; "
                    "name another --encoding, or save it as UTF-8"
                ) from error
            self.n_read += len(block)
        n = min(len(buffer), len(self.ready))
        buffer[:n] = self.ready[:n]
        self.ready = self.ready[n:]
        return n


def parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a Parquet file, batch by batch; the line is the row's number. In a struct (a message, a call) a null
    is a field the row does not have: Parquet gives every struct the fields of all."""
    parquet = _optional("pyarrow.parquet")
    arrow = _optional("pyarrow")
    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield (
                    number,
                    {
                        name: _without_nulls(value)
                        for name, value in row.items()
                        if value is not None or name not in ABSENT_IF_NULL
                    },
                )
    except (OSError, arrow.ArrowException) as error:
        raise DataError(f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}") from error


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def text_rows(file: BinaryIO, path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Paragraphs (blank lines between them) of a plain text file as {"text": ...}."""
    start = 1
    paragraph: list[str] = []
    for number, raw in enumerate(file, 1):
        try:
            line = raw.decode(encoding if number == 1 else encoding.removesuffix("-sig"))
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}:{number}: not {encoding}: {error.reason}; save it as UTF-8 or name its --encoding"
            ) from error
        if line.strip():
            if not paragraph:
                start = number
            paragraph.append(line)
        elif paragraph:
            yield start, {"text": "".join(paragraph).strip("\r\n")}
            paragraph = []
    if paragraph:
        yield start, {"text": "".join(paragraph).strip("\r\n")}


def _optional(name: str) -> Any:
    with extra_needed("data"):
        return import_module(name)


def _first_byte(file: BinaryIO) -> bytes:
    """Up to and including the first block with something in it."""
    read = b""
    while block := file.read(BLOCK_BYTES):
        read += block
        if not read.isspace():
            break
    return read


def _lines(first: bytes, file: BinaryIO, path: Path) -> Iterator[bytes]:
    rest = first
    while True:
        *whole, rest = rest.split(b"\n")
        yield from whole
        if len(rest) > LONGEST_RECORD_BYTES:
            raise DataError(f"{path}: a line longer than {LONGEST_RECORD_BYTES >> 20} MiB; is this JSON Lines?")
        block = file.read(BLOCK_BYTES)
        if not block:
            break
        rest += block
    if rest:
        yield rest


def _array_elements(first: bytes, file: BinaryIO, path: Path) -> Iterator[Record]:
    """Cut `[a, b, ...]` at the commas of depth 1. Says nothing about what the elements hold.

    Raises DataError when the array never closes or something follows it.
    """
    buffer, start, at, line, line_at = first, first.index(b"[") + 1, first.index(b"[") + 1, 1, 0
    depth, in_string, closed = 1, False, False
    while not closed:
        for match in SYNTAX.finditer(buffer, at):
            if match.start() < at:
                continue
            mark = match.group()
            at = match.end()
            if mark == b"\\":
                at += 1
            elif mark == b'"':
                in_string = not in_string
            elif in_string:
                continue
            elif mark in b"{[":
                depth += 1
            elif mark in b"}]":
                depth -= 1
                closed = depth == 0
            if (mark == b"," and depth == 1) or closed:
                element = buffer[start : match.start()]
                if element.strip():
                    begin = start + len(element) - len(element.lstrip())
                    line, line_at = line + buffer.count(b"\n", line_at, begin), begin
                    yield line, element.strip()
                start = at
                if closed:
                    break
        if closed:
            break
        at = max(at, len(buffer))
        line, at, buffer = line + buffer.count(b"\n", line_at, start), at - start, buffer[start:]
        start = line_at = 0
        if len(buffer) > LONGEST_RECORD_BYTES:
            raise DataError(f"{path}:{line}: an element longer than {LONGEST_RECORD_BYTES >> 20} MiB")
        block = file.read(BLOCK_BYTES)
        if not block:
            raise DataError(f"{path}:{line}: the JSON array is not closed: the file ends inside it")
        buffer += block
    if (buffer[at:] + file.read(BLOCK_BYTES)).strip():
        raise DataError(f"{path}: something follows the JSON array")
