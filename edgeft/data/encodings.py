"""Which encoding a file is in: UTF-8, as it should be, UTF-8 with stray bytes of Windows, or another one.

The guess is charset-normalizer's. A file is only taken for another encoding when most of its letters beyond
ASCII are no UTF-8: a few bad bytes in a good file are bad bytes, and reading all of it as Latin-1 would spoil the rest.
"""

import codecs
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.data import sources

AUTO = "auto"
UTF8 = "utf-8-sig"
MIXED = "utf-8-or-windows-1252"
LOOK_BYTES = 64 << 20
LOOK_LINES_BYTES = 1 << 20  # of JSON Lines, whose bad lines are reported one by one
GUESS_BYTES = 1 << 16
BEYOND_ASCII = re.compile(rb"[\x80-\xff]+")
AROUND = re.compile(rb"[\x20-\x7e]{0,30}[\x80-\xff][\x20-\xff]*")
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
GUESSED = [
    "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "koi8_r", "cp932", "euc_jp", "gb18030",
    "big5", "euc_kr",
]  # fmt: skip


@dataclass(frozen=True)
class Encoding:
    """A codec's name, and the lines (at most 1000) with bytes that are not UTF-8 where it is MIXED."""

    name: str
    lines: tuple[int, ...] = ()


def encoding_of(path: Path, wanted: str = AUTO) -> Encoding:
    """The encoding `wanted`, or for "auto" the one the file is in; UTF-8 where none can be told."""
    if wanted != AUTO or path == sources.STDIN or sources.container(path) == "parquet":
        return Encoding(UTF8 if wanted == AUTO else wanted)
    is_lines = sources.container(path) == "jsonl"
    with sources.open_bytes(path) as file:
        head = file.read(LOOK_LINES_BYTES if is_lines else LOOK_BYTES)
    if marked := _by_mark(head):
        return Encoding(marked)
    runs = BEYOND_ASCII.finditer(head)
    bad = [run.start() for run in runs if run.end() < len(head) and not _is_utf8(run.group())]
    if not bad:
        return Encoding(UTF8)
    if 2 * len(bad) > len(BEYOND_ASCII.findall(head)) and (guess := _guess(head)):
        return Encoding(guess)
    if is_lines:
        return Encoding(UTF8)
    return Encoding(MIXED, tuple(sorted({head.count(b"\n", 0, at) + 1 for at in bad[:1000]})))


def marked_encoding(path: Path) -> str | None:
    """The encoding a file names by its first bytes (UTF-16 or UTF-32), None where it names none. Guesses nothing."""
    with sources.open_bytes(path) as file:
        return _by_mark(file.read(4))


def _by_mark(head: bytes) -> str | None:
    return next((name for mark, name in MARKS if head.startswith(mark)), None)


def register() -> None:
    """Make Python know MIXED: UTF-8 in which bytes that are none are read as Windows-1252."""
    codecs.register_error(MIXED, _as_windows)
    codecs.register(_codec)


def _codec(name: str) -> codecs.CodecInfo | None:
    if name.replace("_", "-") != MIXED:
        return None

    def decode(data: Any, errors: str = "strict") -> tuple[str, int]:
        return codecs.utf_8_decode(bytes(data), MIXED, True)

    class Decoder(codecs.BufferedIncrementalDecoder):
        def _buffer_decode(self, data: Any, errors: str, final: bool) -> tuple[str, int]:
            return codecs.utf_8_decode(data, MIXED, final)

    return codecs.CodecInfo(codecs.utf_8_encode, decode, incrementaldecoder=Decoder, name=MIXED)


def _as_windows(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("cp1252", "replace"), error.end


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _guess(head: bytes) -> str | None:
    from charset_normalizer import from_bytes

    sample = b"\n".join(AROUND.findall(head))[:GUESS_BYTES]
    matches = list(from_bytes(sample, cp_isolation=GUESSED, enable_fallback=False))
    for match in matches:  # alike for western languages; this one is the likelier
        if "cp1252" in match.could_be_from_charset and match.coherence > matches[0].coherence - 0.1:
            return "cp1252"
    if matches:
        return matches[0].encoding
    letters = [letter for letter in sample.decode("cp1252", "replace") if not letter.isascii()]
    return "cp1252" if sum(map(str.isalpha, letters)) > 0.9 * len(letters) else None


register()
