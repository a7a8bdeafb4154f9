"""The start of a GGUF file: counts, keys and values, and where each tensor lies.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Written by hand because gguf-py takes a
second for the strings of a large vocabulary, and writes tensors only one after another.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gguf import GGUF_DEFAULT_ALIGNMENT, GGUF_MAGIC, GGUF_VERSION, GGUFValueType

from edgeft.export.gguf.architectures import Metadata
from edgeft.quant.ggml import GgmlType

UINT64 = struct.Struct("<Q")


@dataclass(frozen=True)
class Slot:
    """One tensor in the file: `start` is its first byte, counted from the first tensor's, `n_bytes` its length."""

    name: str
    shape: tuple[int, ...]
    kind: GgmlType
    start: int
    n_bytes: int


def encode_header(metadata: Metadata, slots: Sequence[Slot]) -> bytes:
    """All that stands before the first tensor's bytes, padded to its place."""
    parts = [struct.pack("<IIQQ", GGUF_MAGIC, GGUF_VERSION, len(slots), len(metadata))]
    for key, value in metadata.items():
        parts += (_string(key), _typed(value))
    for slot in slots:
        lengths = slot.shape[::-1]  # the row length first
        parts.append(_string(slot.name))
        parts.append(struct.pack(f"<I{len(lengths)}QIQ", len(lengths), *lengths, int(slot.kind), slot.start))
    header = b"".join(parts)
    return header + bytes(padded(len(header)) - len(header))


def padded(n_bytes: int) -> int:
    """The next multiple of the alignment."""
    return -(-n_bytes // GGUF_DEFAULT_ALIGNMENT) * GGUF_DEFAULT_ALIGNMENT


def slots_of(tensors: Iterable[tuple[str, tuple[int, ...], GgmlType, int]]) -> list[Slot]:
    """The places of tensors (name, shape, type, bytes) one behind the other."""
    slots, start = [], 0
    for name, shape, kind, n_bytes in tensors:
        slots.append(Slot(name, shape, kind, start, n_bytes))
        start = padded(start + n_bytes)
    return slots


def _typed(value: Any) -> bytes:
    """A value with its type before it; ints are uint32 alone and int32 in arrays, as llama.cpp's converter has them."""
    if isinstance(value, bool):
        return struct.pack("<I?", GGUFValueType.BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", GGUFValueType.UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", GGUFValueType.FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", GGUFValueType.STRING) + _string(value)
    kind, items = _array(value)
    return struct.pack("<IIQ", GGUFValueType.ARRAY, kind, len(value)) + items


def _array(values: Sequence[Any]) -> tuple[GGUFValueType, bytes]:
    if isinstance(values, bytes):
        return GGUFValueType.UINT8, values
    first = values[0]
    if isinstance(first, str):
        return GGUFValueType.STRING, _strings(values)
    if isinstance(first, bool):
        return GGUFValueType.BOOL, struct.pack(f"<{len(values)}?", *values)
    if isinstance(first, int):
        return GGUFValueType.INT32, struct.pack(f"<{len(values)}i", *values)
    return GGUFValueType.FLOAT32, struct.pack(f"<{len(values)}f", *values)


def _strings(texts: Sequence[str]) -> bytes:
    """What `_string` gives for each, joined; a vocabulary has hundreds of thousands."""
    encoded = [text.encode() for text in texts]
    lengths = {n: UINT64.pack(n) for n in set(map(len, encoded))}
    return b"".join(part for text in encoded for part in (lengths[len(text)], text))


def _string(text: str) -> bytes:
    encoded = text.encode()
    return UINT64.pack(len(encoded)) + encoded
