"""Writing a GGUF file from a model folder, one tensor in memory at a time."""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, LlamaFileType

from edgeft.artifact import writing
from edgeft.console import Log
from edgeft.errors import ModelError, UsageError
from edgeft.export.folder import Checkpoint, open_checkpoint, read_folder
from edgeft.export.gguf.architectures import Architecture, Metadata, TensorRule
from edgeft.export.gguf.architectures.layout import lay_out
from edgeft.export.gguf.verify import verify_vocabulary
from edgeft.export.gguf.vocabulary import vocabulary_metadata

WRITTEN_FTYPES = {
    "F32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "F16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "BF16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
}
"""The types `write_gguf` writes, smaller ones are `quantize_gguf`'s: the matrices' type, the file's."""

BYTES_PER_WEIGHT = {GGMLQuantizationType.F32: 4, GGMLQuantizationType.F16: 2, GGMLQuantizationType.BF16: 2}
F16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class _Planned:
    rule: TensorRule
    kind: GGMLQuantizationType


def write_gguf(
    model_dir: Path,
    out: Path,
    *,
    ftype: str,
    name: str,
    provenance: Mapping[str, str],
    log: Log,
    texts: Iterable[str] = (),
    architecture: Architecture | None = None,
) -> None:
    """Write the model folder `model_dir` as the GGUF file `out`.

    `ftype` is one of WRITTEN_FTYPES; vectors are always F32, as in llama.cpp's own converter. `name` becomes
    `general.name`, `provenance` the keys `edgeft.<key>`. The same arguments give the same bytes. `out`
    appears only when the file is whole and llama.cpp was seen to tokenize a set of strings, and `texts`, as
    transformers does. `architecture` replaces the one config.json names.

    Raises UsageError for another ftype; ModelError for an unsupported architecture or tokenizer, missing,
    damaged or pickled weights, and where the ids differ; ArtifactError when the disk refuses.
    """
    if ftype not in WRITTEN_FTYPES:
        raise UsageError(f"ftype {ftype}: a model folder can be written as {', '.join(WRITTEN_FTYPES)}")
    folder = read_folder(model_dir)
    layout = lay_out(folder, open_checkpoint(model_dir), architecture)
    kind, file_type = WRITTEN_FTYPES[ftype]
    plan = [_Planned(rule, GGMLQuantizationType.F32 if len(rule.shape) < 2 else kind) for rule in layout.rules]
    metadata: Metadata = {
        "general.type": "model",
        "general.name": name,
        "general.file_type": int(file_type),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        **{f"edgeft.{key}": value for key, value in sorted(provenance.items())},
        **layout.hyperparameters,
        **vocabulary_metadata(folder, layout.n_vocab),
    }
    with writing(out) as temporary:
        _write(temporary, layout.architecture, metadata, layout.checkpoint, plan, log)
        verify_vocabulary(temporary, folder, texts)


def _write(path: Path, name: str, metadata: Metadata, checkpoint: Checkpoint, plan: list[_Planned], log: Log) -> None:
    writer = gguf.GGUFWriter(path, name)
    with contextlib.closing(writer):
        _write_with(writer, metadata, checkpoint, plan, log)


def _write_with(
    writer: gguf.GGUFWriter, metadata: Metadata, checkpoint: Checkpoint, plan: list[_Planned], log: Log
) -> None:
    for key, value in metadata.items():
        _add(writer, key, value)
    for planned in plan:
        shape, n_bytes = planned.rule.shape, BYTES_PER_WEIGHT[planned.kind]
        size = int(np.prod(shape)) * n_bytes
        writer.add_tensor_info(planned.rule.name, shape, np.dtype(np.float32), size, raw_dtype=planned.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with log.progress(f"writing {metadata['general.name']}", len(plan), "tensors") as progress:
        for done, planned in enumerate(plan, 1):
            writer.write_tensor_data(_data(checkpoint, planned))
            progress.update(done)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        item = {
            bool: GGUFValueType.BOOL,
            int: GGUFValueType.INT32,
            float: GGUFValueType.FLOAT32,
            str: GGUFValueType.STRING,
        }[type(value[0])]
        writer.add_key_value(key, value, GGUFValueType.ARRAY, item)


def _data(checkpoint: Checkpoint, planned: _Planned) -> np.ndarray:
    """The bytes of one tensor in its type."""
    rule = planned.rule
    tensor = np.ascontiguousarray(rule.change(*map(checkpoint.read, rule.sources)))
    if planned.kind == GGMLQuantizationType.F16:
        largest = float(np.abs(tensor).max(initial=0.0))
        if largest > F16_MAX:
            raise ModelError(
                f"{checkpoint.path}: {' + '.join(rule.sources)} holds {largest:g}, too large for F16; "
                "export BF16 instead"
            )
        return tensor.astype(np.float16)
    if planned.kind == GGMLQuantizationType.BF16:
        bits: np.ndarray = gguf.quantize(tensor.astype(np.float32), GGMLQuantizationType.BF16)
        return bits
    return tensor.astype(np.float32)
