"""A GGUF file back as a Hugging Face model folder, in float32 or bfloat16.

The tensors go back by the rules of the architecture's own module, read backwards: a rule's `change` moves elements
(a permutation, a transposition, a joining of tensors) and may add a constant. Where each element goes is found by
handing it numbered elements instead of weights, so no rule needs an inverse written by hand.
"""

import json
import math
import os
import tempfile
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
            verify_vocabulary(path, read_folder(folder))
            _write_weights(folder / "model.safetensors", file, rules, dtype, log)
            os.replace(folder, out)
            sync(out.parent)


def undo(rule: TensorRule, tensor: np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The sources of `rule` that `tensor` was made from: (name, flat places in it, their values), one by one.

    Raises ModelError for a change that does more than move elements and add constants.
    """
    shapes = rule.stored_shapes
    if rule.change is unchanged:
        yield rule.sources[0], np.arange(tensor.size), tensor.ravel()
        return
    sizes = [math.prod(shape) for shape in shapes.values()]
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    numbered = [
        np.arange(start, start + size).reshape(shape)
        for start, size, shape in zip(starts, sizes, shapes.values(), strict=True)
    ]
    constant = rule.change(*(np.zeros(shape, np.int64) for shape in shapes.values()))
    places = (rule.change(*numbered) - constant).ravel().astype(np.int64)
    if places.min() < 0 or places.max() >= sum(sizes) or np.bincount(places).max() > 1:
        raise ModelError(f"{rule.name} cannot be turned back into {', '.join(rule.sources)}")
    values = (tensor - constant.astype(np.float32) if constant.any() else tensor).ravel()
    for source, start, size in zip(shapes, starts, sizes, strict=True):
        mine = (places >= start) & (places < start + size)
        yield source, places[mine] - start, values[mine]


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
    """One safetensors file: a length, a JSON header, then the tensors; one of them in memory at a time."""
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
    with path.open("wb") as out, log.progress(f"importing {path.parent.name}", len(shapes), "tensors") as progress:
        out.write(len(text).to_bytes(8, "little") + text)
        for done, (source, shape) in enumerate(shapes.items(), 1):
            _write_tensor(out, _source(file, rules, source, shape), dtype)
            progress.update(done)
        out.flush()
        os.fsync(out.fileno())


def _source(file: GgufFile, rules: list[TensorRule], source: str, shape: tuple[int, ...]) -> np.ndarray:
    """The checkpoint's tensor `source`, put together from every tensor of the file that holds a part of it."""
    whole, filled = np.empty(math.prod(shape), np.float32), 0
    for rule in rules:
        if source in rule.sources:
            for name, places, values in undo(rule, file.read(rule.name)):
                if name == source:
                    whole[places] = values
                    filled += len(places)
    if filled != whole.size:
        raise ModelError(f"{file.header.path}: {source} is only in part in this file; it cannot be imported")
    return whole.reshape(shape)


def _write_tensor(out: BinaryIO, tensor: np.ndarray, dtype: str) -> None:
    if dtype == "bfloat16":
        tensor = gguf.quantize(tensor, gguf.GGMLQuantizationType.BF16)
    out.write(np.ascontiguousarray(tensor).data)
