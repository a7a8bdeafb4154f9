"""The header of a GGUF file, read with the standard library alone: metadata, and where each tensor lies.

Every number in the file is taken as hostile: nothing is allocated, skipped or followed before it is seen to stay
inside the file. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; limits as in llama.cpp's
`ggml/src/gguf.cpp`.
"""

import math
import mmap
import struct
import sys
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from edgeft.errors import ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
ALIGNMENT_KEY = "general.alignment"
MAX_DIMS = 4
MAX_NAME_BYTES = 63
MAX_ELEMENTS = 1 << 40
UINT32, BOOL, STRING, ARRAY = 4, 7, 8, 9
SCALARS = {
    0: ("uint8", "B"), 1: ("int8", "b"), 2: ("uint16", "H"), 3: ("int16", "h"), 4: ("uint32", "I"),
    5: ("int32", "i"), 6: ("float32", "f"), 7: ("bool", "b"), 10: ("uint64", "Q"), 11: ("int64", "q"),
    12: ("float64", "d"),
}  # fmt: skip
"""Number types of metadata: name, and code of `struct` and `array`."""
KIND_NAMES = {kind: name for kind, (name, _) in SCALARS.items()} | {STRING: "string", ARRAY: "array"}

# Number -> (name, weights in a block, bytes of a block): `ggml_type` in ggml.h and the structs of ggml-common.h.
TENSOR_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip


class Value(NamedTuple):
    """One metadata value: `kind` (for an array `item_kind` as well), the value, and the byte its entry begins at.

    Arrays of numbers are `array.array`, arrays of strings lists of bytes as stored; a string is str.
    """

    kind: int
    value: Any
    at: int
    item_kind: int | None = None

    @property
    def type_name(self) -> str:
        """`uint32`, or `array of string`."""
        if self.item_kind is None:
            return KIND_NAMES[self.kind]
        return f"array of {KIND_NAMES[self.item_kind]}"


class TensorInfo(NamedTuple):
    """One tensor: its type's number, its shape as numpy counts it (rows first), where it lies in the file.

    `start` and `n_bytes` are of its data, `at` is the byte its entry in the header begins at.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    start: int
    n_bytes: int
    at: int

    @property
    def type_name(self) -> str:
        """`F32`, `Q4_K`, …"""
        return TENSOR_TYPES[self.kind][0]


class Header(NamedTuple):
    """What a GGUF file says before its weights. `n_bytes` is the size of the whole file."""

    path: Path
    n_bytes: int
    version: int
    alignment: int
    values: Mapping[str, Value]
    tensors: Mapping[str, TensorInfo]

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `key`, or `default`."""
        found = self.values.get(key)
        return default if found is None else found.value

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture; empty where the file does not say it."""
        name = self.get("general.architecture", "")
        return name if isinstance(name, str) else ""


def read_header(path: Path) -> Header:
    """Read and check the header of the GGUF file `path`; the file must hold all it announces.

    Raises ModelError naming the key or tensor and the byte where the file is wrong, or when it cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
            if start != MAGIC:
                raise ModelError(f"{path}: not a GGUF file (it starts with {start!r}); give an exported .gguf file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Reader(path, content).header()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None


class _Reader:
    """Walks the header; every step checks that it stays inside the file."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path, self.content = path, content
        self.size, self.at = len(content), len(MAGIC)
        self.entry, self.entry_at = "the header", 0

    def header(self) -> Header:
        version = self.number("I")
        if version not in VERSIONS:
            raise ModelError(f"{self.path}: GGUF version {version} is not supported (only 2 and 3); convert it again")
        n_tensors, n_values = self.number("Q"), self.number("Q")
        values = self.values(n_values)
        alignment = self.alignment(values)
        entries = self.tensor_entries(n_tensors)
        data_start = _padded(self.at, alignment)
        return Header(self.path, self.size, version, alignment, values, self.placed(entries, data_start, alignment))

    def values(self, count: int) -> dict[str, Value]:
        values: dict[str, Value] = {}
        for index in range(count):
            self.entry, self.entry_at = f"metadata entry {index}", self.at
            key = self.text("key")
            self.entry = f"the key {key!r}"
            if not key:
                self.broken("an empty key")
            if key in values:
                self.broken("it is there twice")
            values[key] = self.value()
        return values

    def value(self) -> Value:
        at, kind = self.entry_at, self.number("I")
        if kind == STRING:
            return Value(kind, self.text("value"), at)
        if kind == ARRAY:
            item, count = self.number("I"), self.number("Q")
            return Value(kind, self.items(item, count), at, item)
        number = self.number(self.code(kind))
        return Value(kind, bool(number) if kind == BOOL else number, at)

    def items(self, kind: int, count: int) -> "list[bytes] | array[Any]":
        if kind == STRING:
            return self.strings(count)
        numbers = array(self.code(kind))
        start = self.at
        self.skip(numbers.itemsize * count)
        numbers.frombytes(self.content[start : self.at])
        if sys.byteorder == "big":
            numbers.byteswap()
        return numbers

    def strings(self, count: int) -> list[bytes]:
        """The hot loop: a vocabulary holds hundreds of thousands."""
        if 8 * count > self.size - self.at:
            self.broken(f"{count} strings do not fit in the rest of the file")
        content, size, at = self.content, self.size, self.at
        length_at = struct.Struct("<Q").unpack_from
        found = []
        try:
            for _ in range(count):
                start = at + 8
                at = start + length_at(content, at)[0]
                found.append(content[start:at])
        except (struct.error, IndexError, OverflowError):
            at = size + 1
        self.at = at
        if at > size:
            self.broken("the file ends inside its strings")
        return found

    def tensor_entries(self, count: int) -> list[tuple[str, int, tuple[int, ...], int, int]]:
        """Name, type, shape, offset and place of the entry, in the file's order."""
        entries, names = [], set()
        for index in range(count):
            self.entry, self.entry_at = f"tensor entry {index}", self.at
            name = self.text("name")
            self.entry = f"the tensor {name!r}"
            if name in names:
                self.broken("it is there twice")
            if len(name.encode()) > MAX_NAME_BYTES:
                self.broken(f"its name is longer than {MAX_NAME_BYTES} bytes")
            names.add(name)
            n_dims = self.number("I")
            if n_dims > MAX_DIMS:
                self.broken(f"{n_dims} dimensions")
            shape = tuple(self.number("Q") for _ in range(n_dims))[::-1]
            if 0 in shape or math.prod(shape) > MAX_ELEMENTS:
                self.broken(f"the shape {shape}")
            entries.append((name, self.number("I"), shape, self.number("Q"), self.entry_at))
        return entries

    def placed(
        self, entries: list[tuple[str, int, tuple[int, ...], int, int]], data_start: int, alignment: int
    ) -> dict[str, TensorInfo]:
        """The tensors one behind the other, as llama.cpp demands: no hole, no overlap, none outside the file."""
        expected, tensors = 0, {}
        for name, kind, shape, offset, at in entries:
            self.entry, self.entry_at = f"the tensor {name!r}", at
            n_bytes = self.tensor_bytes(kind, shape)
            if offset != expected:
                self.broken(f"its offset is {offset}; the tensors before it end at {expected}")
            start = data_start + offset
            if start + n_bytes > self.size:
                self.broken(f"it ends at byte {start + n_bytes}, the file at {self.size}")
            tensors[name] = TensorInfo(name, kind, shape, start, n_bytes, at)
            expected = _padded(offset + n_bytes, alignment)
        return tensors

    def tensor_bytes(self, kind: int, shape: tuple[int, ...]) -> int:
        if kind not in TENSOR_TYPES:
            self.broken(f"the unknown type {kind}")
        name, block, block_bytes = TENSOR_TYPES[kind]
        if shape and shape[-1] % block:
            self.broken(f"rows of {shape[-1]} do not divide into {name} blocks of {block}")
        return math.prod(shape) // block * block_bytes

    def alignment(self, values: Mapping[str, Value]) -> int:
        if ALIGNMENT_KEY not in values:
            return DEFAULT_ALIGNMENT
        found = values[ALIGNMENT_KEY]
        self.entry, self.entry_at = f"the key {ALIGNMENT_KEY!r}", found.at
        alignment = found.value if found.kind == UINT32 else 0
        if alignment == 0 or alignment & (alignment - 1):
            self.broken(f"{found.value!r} ({found.type_name}) is no uint32 power of two")
        return int(alignment)

    def code(self, kind: int) -> str:
        if kind not in SCALARS:
            self.broken(f"a value of unknown type {kind}")
        return SCALARS[kind][1]

    def text(self, what: str) -> str:
        length = self.number("Q")
        start = self.at
        self.skip(length)
        try:
            return self.content[start : self.at].decode()
        except UnicodeDecodeError:
            self.broken(f"its {what} is not UTF-8")

    def number(self, code: str) -> Any:
        start = self.at
        self.skip(struct.calcsize(f"<{code}"))
        return struct.unpack_from(f"<{code}", self.content, start)[0]

    def skip(self, n_bytes: int) -> None:
        if n_bytes > self.size - self.at:
            self.broken("the file ends inside its header")
        self.at += n_bytes

    def broken(self, what: str) -> NoReturn:
        raise ModelError(
            f"{self.path}: damaged or incomplete GGUF file: {self.entry} (byte {self.entry_at}): {what}; "
            "export or copy it again"
        )


def _padded(n_bytes: int, alignment: int) -> int:
    return -(-n_bytes // alignment) * alignment
