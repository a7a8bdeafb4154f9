"""Damaged versions of a GGUF file, each with a name that says what was done to it."""

import random
import struct
from collections.abc import Iterator
from pathlib import Path

from edgeft.runtime.gguf_format import SCALARS, Header, TensorInfo, Value, read_header

Mutant = tuple[str, bytes]

UINT32, FLOAT32, STRING = 4, 6, 8
COUNTS = {"n_tensors": 8, "n_values": 16}
HUGE = (0, 1, 2**31, 2**62, 2**64 - 1)
INTEGERS = (0, 1, 3, 513, 2**31 - 1, 2**31, 4_000_000_000, 2**32 - 1)
FLOATS = (0.0, -1.0, float("nan"), float("inf"), float("-inf"), 1e30, 1e-45)
KINDS = (0, 5, 6, 7, 8, 9, 10, 12, 99)
TENSOR_TYPES = (1, 2, 12, 4, 31, 99, 2**32 - 1)
OTHER_FORMATS = {
    "empty": b"",
    "two bytes": b"GG",
    "magic alone": b"GGUF",
    "zip": b"PK\x03\x04" + bytes(60),
    "safetensors": struct.pack("<Q", 2) + b"{}" + bytes(8),
    "pickle": b"\x80\x04\x95" + bytes(40),
    "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "ggml": b"lmgg" + bytes(64),
    "version 1": b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
    "big endian": b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + bytes(64),
    "no content": b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
    "zeros": bytes(4096),
    "git lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}


def mutants(path: Path, *, seed: int, n_flips: int = 200) -> Iterator[Mutant]:
    """Every mutant of the whole file `path`; the bit flips are drawn by `seed`."""
    content, header = path.read_bytes(), read_header(path)
    yield from OTHER_FORMATS.items()
    damaged = _damaged(content, header, random.Random(seed), n_flips)
    yield from ((name, mutant) for name, mutant in damaged if mutant != content)


def chosen(path: Path, count: int, *, seed: int) -> list[Mutant]:
    """`count` mutants, spread evenly over the kinds of damage (the first word of the name)."""
    kinds: dict[str, list[Mutant]] = {}
    for name, content in mutants(path, seed=seed):
        kinds.setdefault(name.split(":")[0], []).append((name, content))
    source = random.Random(seed)
    for group in kinds.values():
        source.shuffle(group)
    picked: list[Mutant] = []
    while len(picked) < count and any(kinds.values()):
        picked += [group.pop() for group in kinds.values() if group]
    return picked[:count]


def _damaged(content: bytes, header: Header, source: random.Random, n_flips: int) -> Iterator[Mutant]:
    yield from _cuts(content, header)
    yield from _counts(content)
    yield from _values(content, header)
    yield from _arrays(content, header)
    yield from _keys(content, header)
    yield from _tensors(content, header)
    yield from _weights(content, header)
    yield from _flips(content, header, source, n_flips)


def _patched(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def _kind_at(key: str, value: Value) -> int:
    """Byte of the type of a metadata entry; the value follows it."""
    return value.at + 8 + len(key.encode())


def _cuts(content: bytes, header: Header) -> Iterator[Mutant]:
    """The file ends at a border of its structure, or one byte beside it."""
    tensors = list(header.tensors.values())
    borders = {f"key {key}": value.at for key, value in header.values.items()}
    borders |= {f"type of {key}": _kind_at(key, value) for key, value in header.values.items()}
    borders |= {f"entry of {tensor.name}": tensor.at for tensor in tensors[:8]}
    borders |= {f"data of {tensor.name}": tensor.start for tensor in (*tensors[:4], *tensors[-4:])}
    borders |= {"last byte": len(content) - 1, "counts": 12, "second count": 20}
    for name, at in borders.items():
        for shift in (0, 1):
            yield f"cut: {name} +{shift}", content[: at + shift]
    yield "cut: a longer file", content + bytes(1000)


def _counts(content: bytes) -> Iterator[Mutant]:
    for name, at in COUNTS.items():
        (now,) = struct.unpack_from("<Q", content, at)
        for value in (*HUGE, now - 1, now + 1):
            yield f"count: {name} = {value}", _patched(content, at, struct.pack("<Q", value))
    yield "count: swapped", _patched(content, 8, content[16:24] + content[8:16])


def _values(content: bytes, header: Header) -> Iterator[Mutant]:
    """Numbers set to what no model has, and types changed under a value."""
    for key, value in header.values.items():
        at = _kind_at(key, value)
        if value.kind == UINT32:
            for number in (*INTEGERS, value.value + 1, max(0, value.value - 1)):
                yield f"integer: {key} = {number}", _patched(content, at + 4, struct.pack("<I", number))
        elif value.kind == FLOAT32:
            for number in FLOATS:
                yield f"float: {key} = {number}", _patched(content, at + 4, struct.pack("<f", number))
        elif value.kind == STRING:
            for length in (0, 1, 2**62, 2**64 - 1):
                yield f"string: {key} of {length} bytes", _patched(content, at + 4, struct.pack("<Q", length))
            garbage = b"\xff" * len(value.value.encode())
            yield f"string: {key} is no UTF-8", _patched(content, at + 12, garbage)
            letters = b"x" * len(garbage)
            yield f"string: {key} = xx", _patched(content, at + 12, letters)
        for kind in KINDS:
            yield f"kind: {key} is {kind}", _patched(content, at, struct.pack("<I", kind))


def _arrays(content: bytes, header: Header) -> Iterator[Mutant]:
    for key, value in header.values.items():
        if value.item_kind is None:
            continue
        at = _kind_at(key, value) + 4
        for kind in (*KINDS, 4):
            yield f"items: {key} of {kind}", _patched(content, at, struct.pack("<I", kind))
        for count in (*HUGE, len(value.value) - 1):
            yield f"length: {key} = {count}", _patched(content, at + 4, struct.pack("<Q", count))
        first = at + 12
        if value.item_kind == STRING:
            for length in (0, 2**40, 2**64 - 1):
                yield f"length: first of {key} = {length}", _patched(content, first, struct.pack("<Q", length))
            yield from _doubled_tokens(content, key, value, first)
        else:
            code = SCALARS[value.item_kind][1]
            for number in (-1, 77) if code == "i" else (float("nan"), float("inf")):
                yield f"item: {key}[0] = {number}", _patched(content, first, struct.pack(f"<{code}", number))


def _doubled_tokens(content: bytes, key: str, value: Value, at: int) -> Iterator[Mutant]:
    """A string overwritten with its predecessor of the same length."""
    before = b""
    for index, text in enumerate(value.value):
        if len(text) == len(before) > 0 and index > 300:
            yield f"double: {key}[{index}]", _patched(content, at + 8, before)
            return
        before, at = text, at + 8 + len(text)


def _keys(content: bytes, header: Header) -> Iterator[Mutant]:
    """Keys left out, twice, or called otherwise."""
    ends = [value.at for value in header.values.values()][1:]
    for (key, value), end in zip(header.values.items(), ends, strict=False):
        n_values = len(header.values)
        fewer = _patched(content, COUNTS["n_values"], struct.pack("<Q", n_values - 1))
        yield f"missing: {key}", fewer[: value.at] + fewer[end:]
        more = _patched(content, COUNTS["n_values"], struct.pack("<Q", n_values + 1))
        yield f"twice: {key}", more[:end] + content[value.at : end] + more[end:]
        yield f"renamed: {key}", _patched(content, value.at + 8, b"z" * len(key.encode()))


def _tensors(content: bytes, header: Header) -> Iterator[Mutant]:
    """The entries of the first tensors and the last: names, shapes, types and offsets."""
    tensors = list(header.tensors.values())
    for tensor, other in zip((*tensors[:8], tensors[-1]), tensors[1:], strict=False):
        dims = tensor.at + 8 + len(tensor.name.encode())
        kind = dims + 4 + 8 * len(tensor.shape)
        for count in (0, 3, 5, 2**32 - 1):
            yield f"dims: {tensor.name} has {count}", _patched(content, dims, struct.pack("<I", count))
        for size in (*HUGE, tensor.shape[-1] + 32):
            yield f"shape: {tensor.name} has {size}", _patched(content, dims + 4, struct.pack("<Q", size))
        for number in TENSOR_TYPES:
            yield f"type: {tensor.name} is {number}", _patched(content, kind, struct.pack("<I", number))
        for offset in (1, 32, 2**40, 2**63, 2**64 - 32):
            yield f"offset: {tensor.name} at {offset}", _patched(content, kind + 4, struct.pack("<Q", offset))
        yield from _swapped(content, tensor, other)


def _swapped(content: bytes, one: TensorInfo, other: TensorInfo) -> Iterator[Mutant]:
    names = one.name.encode(), other.name.encode()
    if len(names[0]) == len(names[1]):
        first = _patched(content, one.at + 8, names[1])
        yield f"name: {other.name} twice", first
        yield f"name: {one.name} and {other.name} swapped", _patched(first, other.at + 8, names[0])
    yield f"name: {one.name} is xx", _patched(content, one.at + 8, b"x" * len(names[0]))


def _weights(content: bytes, header: Header) -> Iterator[Mutant]:
    """Damage no header shows: bytes of a tensor all ones (NaN in every float type) or zero."""
    tensors = list(header.tensors.values())
    for tensor in (*tensors[:6], *tensors[-3:]):
        yield f"weights: {tensor.name} all ones", _patched(content, tensor.start, b"\xff" * tensor.n_bytes)
        yield f"weights: {tensor.name} zero", _patched(content, tensor.start, bytes(tensor.n_bytes))


def _flips(content: bytes, header: Header, source: random.Random, count: int) -> Iterator[Mutant]:
    end_of_header = min((tensor.start for tensor in header.tensors.values()), default=len(content))
    for index in range(count):
        start, end = (0, end_of_header) if index % 4 else (end_of_header, len(content))
        at, bit = source.randrange(start, end), source.randrange(8)
        yield f"flip: bit {bit} of byte {at}", _patched(content, at, bytes([content[at] ^ 1 << bit]))
