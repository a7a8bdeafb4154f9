"""A look at a GGUF file before llama.cpp gets it.

llama.cpp refuses most broken files cleanly but ends the process on a few, so what can be seen without it is
seen here: that the file is there, is GGUF, and is long enough for everything its header announces.
The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from pathlib import Path
from typing import NoReturn

from edgeft.errors import ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMS = 4
STRING, ARRAY = 8, 9
SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
TOKENS_KEY = b"tokenizer.ggml.tokens"


def check_gguf(path: Path) -> None:
    """Raise ModelError when `path` is missing, is not a GGUF file, or is cut short or inconsistent."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
            if start != MAGIC:
                raise ModelError(f"{path}: not a GGUF file (it starts with {start!r})")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                _Reader(path, content).check()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None


class _Reader:
    """Walks the header; every step checks that it stays inside the file."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path, self.content = path, content
        self.size, self.at = len(content), len(MAGIC)

    def check(self) -> None:
        version = self.number("<I")
        if version not in VERSIONS:
            raise ModelError(f"{self.path}: GGUF version {version} is not supported (only {VERSIONS})")
        n_tensors, n_values = self.number("<Q"), self.number("<Q")
        for _ in range(n_values):
            key = self.string()
            self.value(self.number("<I"), key)
        offsets = [self.tensor() for _ in range(n_tensors)]
        if offsets and self.at + max(offsets) >= self.size:
            self.broken("the file ends before its last tensor")

    def tensor(self) -> int:
        """Offset of the tensor's data in bytes, from the start of the data section."""
        self.string()
        n_dims = self.number("<I")
        if n_dims > MAX_DIMS:
            self.broken(f"a tensor with {n_dims} dimensions")
        n_elements = 1
        for _ in range(n_dims):
            n_elements *= self.number("<Q")
        if n_elements >= 1 << 40:
            self.broken(f"a tensor of {n_elements} elements")
        self.skip(4)
        return self.number("<Q")

    def value(self, kind: int, key: bytes) -> None:
        if kind == STRING:
            self.string()
        elif kind == ARRAY:
            item, count = self.number("<I"), self.number("<Q")
            if item == STRING:
                self.strings(count, distinct=key == TOKENS_KEY)
            else:
                self.skip(self.scalar_bytes(item) * count)
        else:
            self.skip(self.scalar_bytes(kind))

    def strings(self, count: int, *, distinct: bool) -> None:
        """Skip `count` strings. llama.cpp ends the process when two tokens have the same text."""
        if not distinct:
            for _ in range(count):
                self.skip(self.number("<Q"))
            return
        seen = set()
        for _ in range(count):
            seen.add(self.string())
        if len(seen) < count:
            self.broken("two tokens have the same text")

    def scalar_bytes(self, kind: int) -> int:
        if kind not in SCALAR_BYTES:
            self.broken(f"a metadata value of unknown type {kind}")
        return SCALAR_BYTES[kind]

    def string(self) -> bytes:
        length = self.number("<Q")
        start = self.at
        self.skip(length)
        return self.content[start : self.at]

    def number(self, form: str) -> int:
        start = self.at
        self.skip(struct.calcsize(form))
        value: int = struct.unpack_from(form, self.content, start)[0]
        return value

    def skip(self, n_bytes: int) -> None:
        self.at += n_bytes
        if self.at > self.size:
            self.broken("the file ends inside its header")

    def broken(self, what: str) -> NoReturn:
        raise ModelError(f"{self.path}: damaged or incomplete GGUF file: {what}; export or copy it again")
