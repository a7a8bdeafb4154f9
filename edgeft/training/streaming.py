"""Safetensors files read and written a few rows at a time, so that no model need be in memory whole.

Format: 8 bytes little-endian header length, the JSON header, the tensors' bytes without gaps
(https://huggingface.co/docs/safetensors, "Format"). Files are read with plain reads, not mapped: mapped pages
would count as this process's memory until the whole file is closed.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgeft.artifact import write_refused
from edgeft.checkpoint_files import weight_files as weight_files
from edgeft.errors import ModelError
from edgeft.training.models import check_safetensors

BLOCK_ELEMENTS = 1 << 22  # of a tensor held at once: 16 MiB in float32
TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in TYPES.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: its type and shape, and where its bytes begin in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int = 0

    @property
    def n_bytes(self) -> int:
        """Size on disk."""
        return self.dtype.itemsize * _product(self.shape)


class TensorFile:
    """A safetensors file: `entries` by name; `tensor` and `rows` read.

    Raises ModelError when the file is truncated or holds a type torch does not have.
    """

    def __init__(self, path: Path):
        check_safetensors(path)
        self.path = path
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        self.entries: dict[str, Entry] = {}
        for name, described in header.items():
            if described["dtype"] not in TYPES:
                raise ModelError(f"{path}: {name} has type {described['dtype']}; save the model in bfloat16 first")
            self.entries[name] = Entry(
                TYPES[described["dtype"]], tuple(described["shape"]), 8 + length + described["data_offsets"][0]
            )

    def tensor(self, name: str) -> torch.Tensor:
        """The whole tensor, in memory of its own."""
        entry = self.entries[name]
        return self._read(entry, entry.start, entry.shape)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows start … stop − 1 along the first dimension, in memory of their own."""
        entry = self.entries[name]
        row_bytes = entry.dtype.itemsize * _product(entry.shape[1:])
        return self._read(entry, entry.start + start * row_bytes, (stop - start, *entry.shape[1:]))

    def _read(self, entry: Entry, start: int, shape: tuple[int, ...]) -> torch.Tensor:
        buffer = bytearray(entry.dtype.itemsize * _product(shape))
        if not buffer:
            return torch.empty(shape, dtype=entry.dtype)
        with self.path.open("rb", buffering=0) as file:
            file.seek(start)
            view, done = memoryview(buffer), 0
            while done < len(buffer):
                n_read = file.readinto(view[done:])
                if not n_read:
                    raise ModelError(f"{self.path}: became shorter while it was read; copy it again")
                done += n_read
        return torch.frombuffer(buffer, dtype=entry.dtype).reshape(shape)


def row_blocks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """(start, stop) runs of rows of at most `BLOCK_ELEMENTS` elements (a longer single row stands alone)."""
    n_rows = shape[0] if shape else 1
    step = max(1, BLOCK_ELEMENTS // max(1, _product(shape[1:])))
    for start in range(0, n_rows, step):
        yield start, min(n_rows, start + step)


def write_tensors(path: Path, entries: dict[str, Entry], pieces: Callable[[str], Iterable[torch.Tensor]]) -> None:
    """Write `path`: header first, then for each tensor what `pieces(name)` yields, its rows in order.

    The bytes are those of `safetensors.torch.save_file` (largest types first, then by name). The file appears
    under its name only when it is complete. Raises ArtifactError when the disk refuses, ValueError when the
    pieces of a tensor do not make up its entry.
    """
    order = sorted(entries, key=lambda name: (-_rank(entries[name].dtype), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order:
        entry = entries[name]
        end = offset + entry.n_bytes
        header[name] = {"dtype": NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                written = 0
                for piece in pieces(name):
                    if piece.dtype != entries[name].dtype:
                        raise ValueError(f"{name}: a piece is {piece.dtype}, the header says {entries[name].dtype}")
                    data = piece.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
                    file.write(data.data)
                    written += data.nbytes
                if written != entries[name].n_bytes:
                    raise ValueError(f"{name}: {written} bytes where the header says {entries[name].n_bytes}")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise write_refused(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_index(folder: Path, shards: dict[str, dict[str, Entry]]) -> None:
    """Write transformers' index of a model in several files: which tensor is where, and bytes in all."""
    content = {
        "metadata": {"total_size": sum(entry.n_bytes for entries in shards.values() for entry in entries.values())},
        "weight_map": {name: shard for shard, entries in sorted(shards.items()) for name in sorted(entries)},
    }
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _rank(dtype: torch.dtype) -> int:
    """Place of a type in safetensors' own order, which keeps every tensor aligned."""
    order = ["BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "F16", "BF16", "I32", "F32", "F64", "I64"]
    return order.index(NAMES[dtype])
