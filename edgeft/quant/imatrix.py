"""The importance matrix: how strongly each input column of each weight matrix is used.

In quantizing, the error of column j counts E[x_j²], the mean square of the activations that meet it. The file
formats are llama.cpp's (`tools/imatrix/imatrix.cpp` writes them, `common/imatrix-loader.cpp` reads them): a GGUF
file with `<tensor>.in_sum2` and `<tensor>.counts`, or the older `.dat`.

Shapes: C columns of a matrix (its inputs), E experts of a stacked one.
"""

import contextlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGUFValueType

from edgeft.artifact import writing
from edgeft.errors import ModelError
from edgeft.runtime.gguf_format import MAGIC, read_header

SUMS, COUNTS = ".in_sum2", ".counts"
TYPE, TYPE_KEY = "imatrix", "general.type"
DATASETS_KEY, CHUNK_COUNT_KEY, CHUNK_SIZE_KEY = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"


@dataclass(frozen=True)
class Imatrix:
    """Squared activations by GGUF tensor name.

    `sums` float32 (C,) or (E, C), over `counts` float32 () or (E,) tokens. `datasets` (at least one) say where
    the tokens come from; a chunk is `chunk_size` tokens.
    """

    sums: Mapping[str, np.ndarray]
    counts: Mapping[str, np.ndarray]
    datasets: tuple[str, ...]
    n_chunks: int
    chunk_size: int

    def importance(self, name: str) -> np.ndarray | None:
        """Mean squared activations of the tensor `name`, float32 (C,) or (E, C); None where none were seen.

        An expert no token went to has ones, as in llama-quantize.
        """
        if name not in self.sums:
            return None
        sums, counts = self.sums[name], self.counts[name][..., None]
        mean: np.ndarray = np.where(counts > 0, sums / np.maximum(counts, 1), np.float32(1)).astype(np.float32)
        return mean


class Collector:
    """Adds up squared activations, in float64."""

    def __init__(self) -> None:
        self._sums: dict[str, np.ndarray] = {}
        self._counts: dict[str, np.ndarray] = {}

    def add(self, name: str, squares: np.ndarray, n_tokens: int, expert: tuple[int, int] | None = None) -> None:
        """Count `squares` (C,), summed over `n_tokens` inputs of the tensor `name`.

        `expert` (which one, of how many) for one matrix of a stack. Raises ModelError when they are not finite.
        """
        if not np.isfinite(squares).all():
            raise ModelError(f"{name}: its input is not finite; the model overflows, or its weights are damaged")
        which, n_experts = expert or (0, 1)
        if name not in self._sums:
            self._sums[name], self._counts[name] = np.zeros((n_experts, len(squares))), np.zeros(n_experts)
        self._sums[name][which] += squares
        self._counts[name][which] += n_tokens

    def imatrix(self, datasets: tuple[str, ...], chunk_size: int) -> Imatrix:
        """What was collected. Raises ModelError when nothing was."""
        if not self._sums:
            raise ModelError("no activations were seen: the model has no weight matrices under the names given")
        most = max(counts.max() for counts in self._counts.values())
        shapes = {name: () if len(counts) == 1 else counts.shape for name, counts in self._counts.items()}
        return Imatrix(
            {name: sums.astype(np.float32).reshape(*shapes[name], -1) for name, sums in self._sums.items()},
            {name: counts.astype(np.float32).reshape(shapes[name]) for name, counts in self._counts.items()},
            datasets,
            max(1, int(most) // chunk_size),
            chunk_size,
        )


def write_imatrix(path: Path, imatrix: Imatrix) -> None:
    """Write llama.cpp's GGUF form; the same matrix gives the same bytes. Raises ArtifactError when the disk refuses."""
    with writing(path) as temporary, contextlib.closing(_Writer(temporary, TYPE)) as writer:
        writer.add_string(TYPE_KEY, TYPE)
        writer.add_key_value(DATASETS_KEY, list(imatrix.datasets), GGUFValueType.ARRAY, GGUFValueType.STRING)
        writer.add_uint32(CHUNK_COUNT_KEY, imatrix.n_chunks)
        writer.add_uint32(CHUNK_SIZE_KEY, imatrix.chunk_size)
        for name in sorted(imatrix.sums):
            writer.add_tensor(name + SUMS, np.atleast_2d(imatrix.sums[name]).astype(np.float32))
            writer.add_tensor(name + COUNTS, np.atleast_1d(imatrix.counts[name])[:, None].astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


class _Writer(gguf.GGUFWriter):
    def add_architecture(self) -> None:
        """An importance matrix is of no architecture."""


def read_imatrix(path: Path) -> Imatrix:
    """Read either of llama.cpp's forms. Raises ModelError when the file is missing, damaged or something else."""
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    if start != MAGIC:
        return _read_dat(path)
    read_header(path)
    return _read_gguf(path)


def _read_gguf(path: Path) -> Imatrix:
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    keys = {key: reader.fields[key].contents() for key in reader.fields}
    names = sorted(name.removesuffix(SUMS) for name in tensors if name.endswith(SUMS))
    whole = len(tensors) == 2 * len(names) and all(name + COUNTS in tensors for name in names)
    if not names or not whole or any(tensor.tensor_type for tensor in tensors.values()):
        raise ModelError(f"{path}: not an importance matrix (it needs float32 pairs *{SUMS}, *{COUNTS}); make it again")
    if missing := [key for key in (DATASETS_KEY, CHUNK_COUNT_KEY, CHUNK_SIZE_KEY) if key not in keys]:
        raise ModelError(f"{path}: an importance matrix without {', '.join(missing)}; make it again")
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}
    for name in names:
        n_tokens = tensors[name + COUNTS].data.reshape(-1)
        values = tensors[name + SUMS].data.reshape(len(n_tokens), -1)
        _check(path, name, values, n_tokens)
        shape = () if len(n_tokens) == 1 else (len(n_tokens),)
        sums[name], counts[name] = values.reshape(*shape, -1).copy(), n_tokens.reshape(shape).copy()
    return Imatrix(sums, counts, tuple(keys[DATASETS_KEY]), int(keys[CHUNK_COUNT_KEY]), int(keys[CHUNK_SIZE_KEY]))


def _read_dat(path: Path) -> Imatrix:
    """The older form: mean · calls by name, with no word on how many tokens a call has (chunk_size 0)."""
    content = path.read_bytes()
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}
    try:
        (n_entries,), at = struct.unpack_from("<i", content), 4
        for _ in range(n_entries):
            name, at = _string(content, at)
            n_calls, n_values = struct.unpack_from("<ii", content, at)
            values = np.frombuffer(content, "<f4", n_values, at + 8)
            sums[name], counts[name] = values.copy(), np.array(n_calls, np.float32)
            _check(path, name, values[None], np.array([n_calls]))
            at += 8 + values.nbytes
        n_chunks, dataset = 0, ""
        if at < len(content):
            (n_chunks,) = struct.unpack_from("<i", content, at)
            dataset, at = _string(content, at + 4)
    except (struct.error, ValueError):
        raise ModelError(f"{path}: neither of llama.cpp's importance matrix formats, or damaged") from None
    if not sums:
        raise ModelError(f"{path}: an importance matrix without entries")
    return Imatrix(sums, counts, (dataset,) if dataset else (), n_chunks, 0)


def _string(content: bytes, at: int) -> tuple[str, int]:
    """The string at `at` with its length before it, and where it ends."""
    (length,) = struct.unpack_from("<i", content, at)
    end = at + 4 + length
    if not at + 4 <= end <= len(content):
        raise ValueError("a string beyond the file")
    return content[at + 4 : end].decode(), end


def _check(path: Path, name: str, sums: np.ndarray, counts: np.ndarray) -> None:
    if not (np.isfinite(sums).all() and (sums >= 0).all() and np.isfinite(counts).all()):
        raise ModelError(f"{path}: {name} has squares that are negative or not finite; make the matrix again")
