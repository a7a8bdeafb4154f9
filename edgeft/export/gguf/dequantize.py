"""A GGUF file back as a Hugging Face model folder, in float32 or bfloat16.

The tensors go back by the rules of the architecture's own module, read backwards: a rule's `change` moves elements
(a permutation, a transposition, a joining of tensors) and may add a constant. Where each element goes is found by
handing it numbered elements instead of weights, so no rule needs an inverse written by hand.
"""

import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np

from edgeft.artifact import refused_writes
from edgeft.console import Log
from edgeft.errors import ModelError, UsageError
from edgeft.export.folder import read_folder
from edgeft.export.gguf.architectures import TensorRule
from edgeft.export.gguf.architectures.base import unchanged
from edgeft.export.gguf.model_config import config_of, pooling_files
from edgeft.export.gguf.model_tokenizer import tokenizer_files
from edgeft.export.gguf.read import GgufFile, open_gguf
from edgeft.export.gguf.verify import verify_vocabulary
from edgeft.machine.files import sync

DTYPES = {"float32": ("F32", 4), "bfloat16": ("BF16", 2)}
"""transformers' name -> safetensors' name and bytes of a weight."""
MILLION = 1_000_000


def import_gguf(path: Path, out: Path, *, dtype: str = "float32", log: Log) -> None:
    """Write the model file `path` as the model folder `out`, which must not exist or be empty.

    Quantized weights are dequantized as ggml does it. The folder appears only when it is whole and transformers
    was seen to tokenize a set of strings as llama.cpp does the file.

    Raises UsageError for another dtype or a folder in use; ModelError for a damaged file, an unsupported
    architecture or tokenizer, tensors the architecture has no place for, and where ids differ; ArtifactError when
    the disk refuses.
    """
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype}: known are {', '.join(DTYPES)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: is in use; give a new folder")
    file = open_gguf(path)
    config, architecture = config_of(file, dtype)
    rules = list(architecture.tensors({**architecture.defaults, **config}))
    _check_tensors(file, rules)
    contents = {"config.json": config, **tokenizer_files(file.header), **pooling_files(file)}
    with refused_writes(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".import-") as temporary:
            folder = Path(temporary) / "model"
            folder.mkdir()
            for name, content in contents.items():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            if template := file.header.get("tokenizer.chat_template"):
                (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
            log.say(f"{path.name}: {verify_vocabulary(path, read_folder(folder))}")
            _write_weights(folder / "model.safetensors", file, rules, dtype, log)
            os.replace(folder, out)
            sync(out.parent)


def undo(rule: TensorRule, tensor: np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The sources of `rule` that `tensor` was made from: (name, flat places in it, their values), one by one.

    Raises ModelError for a change that does more than move elements and add constants.
    """
    shapes = rule.stored_shapes
    sizes = [math.prod(shape) for shape in shapes.values()]
    total = sum(sizes)
    whole_number = np.int32 if total < 1 << 31 else np.int64
    if rule.change is unchanged:
        yield rule.sources[0], np.arange(tensor.size, dtype=whole_number), tensor.ravel()
        return
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    constant = rule.change(*(np.zeros(shape, np.int8) for shape in shapes.values()))
    numbered = [
        np.arange(start, start + size, dtype=whole_number).reshape(shape)
        for start, size, shape in zip(starts, sizes, shapes.values(), strict=True)
    ]
    places = rule.change(*numbered)
    del numbered
    if constant.any():
        places, tensor = places - constant, tensor - constant.astype(np.float32)
    places, values = places.ravel().astype(whole_number, copy=False), tensor.ravel()
    if places.min() < 0 or places.max() >= total or not _all_different(places, total):
        raise ModelError(f"{rule.name} cannot be turned back into {', '.join(rule.sources)}")
    if len(sizes) == 1:
        yield rule.sources[0], places, values
        return
    for source, start, size in zip(shapes, starts, sizes, strict=True):
        mine = (places >= start) & (places < start + size)
        yield source, places[mine] - start, values[mine]


def _all_different(places: np.ndarray, total: int) -> bool:
    seen = np.zeros(total, bool)
    seen[places] = True
    return int(np.count_nonzero(seen)) == places.size


def _check_tensors(file: GgufFile, rules: list[TensorRule]) -> None:
    """Raise ModelError unless the file holds exactly the tensors of `rules`, in their shapes."""
    stored, expected = file.header.tensors, {rule.name: rule for rule in rules}
    for name in sorted(stored.keys() ^ expected.keys()):
        where = "has no place in its architecture" if name in stored else "is missing"
        raise ModelError(f"{file.header.path}: the tensor {name!r} {where}; it cannot be imported")
    for name, rule in expected.items():
        if stored[name].shape != rule.shape:
            raise ModelError(f"{file.header.path}: {name} has shape {stored[name].shape}; expected {rule.shape}")


def _write_weights(path: Path, file: GgufFile, rules: list[TensorRule], dtype: str, log: Log) -> None:
    """One safetensors file: a length, a JSON header, then the tensors. In memory is a few rows of a tensor that stays
    as it is, else one tensor."""
    kind, n_bytes = DTYPES[dtype]
    shapes = {source: shape for rule in rules for source, shape in rule.stored_shapes.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for source, shape in shapes.items():
        end = at + math.prod(shape) * n_bytes
        header[source] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    places = {source: 8 + len(text) + header[source]["data_offsets"][0] for source in shapes}
    n_weights = sum(map(math.prod, shapes.values()))
    with path.open("wb") as out, log.progress(path.parent.name, n_weights // MILLION, "million weights") as progress:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + at)
        done, sources = 0, _Sources(file, rules, shapes)
        for source, first, values in sources.pieces():
            out.seek(places[source] + first * n_bytes)
            _write_values(out, values, dtype)
            done += values.size
            progress.update(done // MILLION)
        out.flush()
        os.fsync(out.fileno())


class _Sources:
    """The checkpoint's tensors, put together from those of the file."""

    def __init__(self, file: GgufFile, rules: list[TensorRule], shapes: dict[str, tuple[int, ...]]) -> None:
        self.file, self.rules = file, rules
        self.sizes = {source: math.prod(shape) for source, shape in shapes.items()}
        self.n_rules = Counter(source for rule in rules for source in rule.sources)
        self.parts: dict[str, tuple[np.ndarray, int]] = {}
        """Of tensors that several of the file hold a part of: what is there yet, and how many weights that is."""
        self.written: set[str] = set()

    def pieces(self) -> Iterator[tuple[str, int, np.ndarray]]:
        """(source, place of the first weight in it, weights), until every source is whole. Raises ModelError for one
        that the file holds only in part."""
        for rule in self.rules:
            if rule.change is unchanged and self.n_rules[rule.sources[0]] == 1:
                self.written.add(rule.sources[0])
                for first, rows in self.file.blocks(rule.name):
                    yield rule.sources[0], first * rows.shape[1], rows.ravel()
            elif rule.sources and not self.written.issuperset(rule.sources):
                yield from self._moved(rule)
        if left := sorted(self.sizes.keys() - self.written):
            raise ModelError(f"{self.file.header.path}: {left[0]} is only in part in this file; it cannot be imported")

    def _moved(self, rule: TensorRule) -> Iterator[tuple[str, int, np.ndarray]]:
        for source, places, values in undo(rule, self.file.read(rule.name)):
            whole, n_filled = self.parts.pop(source, (None, 0))
            whole = np.empty(self.sizes[source], np.float32) if whole is None else whole
            whole[places] = values
            n_filled += len(places)
            if n_filled < whole.size:
                self.parts[source] = (whole, n_filled)
                continue
            self.written.add(source)
            yield source, 0, whole


def _write_values(out: BinaryIO, values: np.ndarray, dtype: str) -> None:
    if dtype == "bfloat16":
        values = gguf.quantize(values, gguf.GGMLQuantizationType.BF16)
    out.write(np.ascontiguousarray(values).data)
