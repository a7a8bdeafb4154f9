"""What differs between two GGUF files, from their headers and the bytes of their tensors."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from edgeft.artifact import CHUNK_BYTES
from edgeft.runtime.gguf_format import Header, TensorInfo, Value
from edgeft.runtime.header import check_gguf

Found = tuple[str, str, str | None, str | None]
"""Part, name, before, after."""
TEMPLATE, TOKENIZER = "tokenizer.chat_template", "tokenizer."
LONG = 120


def gguf_differences(a: Path, b: Path) -> Iterator[Found]:
    """Numbers of tensors by type, then tensor by tensor, then metadata. Raises ModelError for a damaged file."""
    one, other = check_gguf(a), check_gguf(b)
    yield from _types(one, other)
    yield from _tensors(one, other)
    for key in sorted(one.values.keys() | other.values.keys()):
        before, after = one.values.get(key), other.values.get(key)
        if (before and _plain(before)) != (after and _plain(after)) or (before is None) != (after is None):
            part = "template" if key == TEMPLATE else "tokenizer" if key.startswith(TOKENIZER) else "metadata"
            yield from _values(part, key, before, after)


def _types(a: Header, b: Header) -> Iterator[Found]:
    counts = [Counter(tensor.type_name for tensor in side.tensors.values()) for side in (a, b)]
    for name in sorted(counts[0] | counts[1]):
        before, after = (str(count[name]) if count[name] else None for count in counts)
        if before != after:
            yield "types", name, before, after


def _tensors(a: Header, b: Header) -> Iterator[Found]:
    with a.path.open("rb") as file_a, b.path.open("rb") as file_b:
        for name in sorted(a.tensors.keys() | b.tensors.keys()):
            one, other = a.tensors.get(name), b.tensors.get(name)
            before, after = (_described(tensor) if tensor else None for tensor in (one, other))
            if before == after and one and other:
                hashes = _sha256(file_a, one), _sha256(file_b, other)
                before, after = (f"{before} sha256 {digest[:16]}…" for digest in hashes)
            if before != after:
                yield "tensors", name, before, after


def _described(tensor: TensorInfo) -> str:
    return f"{tensor.type_name} {'x'.join(map(str, tensor.shape))}"


def _sha256(file: BinaryIO, tensor: TensorInfo) -> str:
    digest, left = hashlib.sha256(), tensor.n_bytes
    file.seek(tensor.start)
    while left and (chunk := file.read(min(left, CHUNK_BYTES))):
        digest.update(chunk)
        left -= len(chunk)
    return digest.hexdigest()


def _values(part: str, key: str, before: Value | None, after: Value | None) -> Iterator[Found]:
    """One row, or for two arrays of one length a row for every entry that differs."""
    arrays = before and after and before.item_kind is not None and before.item_kind == after.item_kind
    if not arrays or not before or not after or len(before.value) != len(after.value):
        yield part, key, _shown(before), _shown(after)
        return
    for at, (old, new) in enumerate(zip(before.value, after.value, strict=True)):
        if old != new:
            yield part, f"{key}[{at}]", _item(old), _item(new)


def _plain(value: Value) -> tuple[int, int | None, object]:
    """Comparable: type and content; arrays by bytes, so that NaN is itself."""
    content = value.value.tobytes() if isinstance(value.value, array) else value.value
    return value.kind, value.item_kind, content


def _shown(value: Value | None) -> str | None:
    if value is None:
        return None
    if value.item_kind is not None:
        return f"{value.type_name}, {len(value.value)} entries"
    text = value.value if isinstance(value.value, str) else repr(value.value)
    return text if len(text) <= LONG else f"{text[:LONG]}… ({len(text)} characters)"


def _item(value: object) -> str:
    return repr(value.decode(errors="replace")) if isinstance(value, bytes) else repr(value)
