"""Writing a GGUF file from a model folder in one pass over its weights."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import gguf
import numpy as np

from edgeft.artifact import writing
from edgeft.console import Log
from edgeft.errors import ModelError, UsageError
from edgeft.export.adapter import read_adapter
from edgeft.export.folder import Checkpoint, open_checkpoint, read_folder
from edgeft.export.gguf.architectures import Architecture, Metadata
from edgeft.export.gguf.architectures.layout import Layout, lay_out
from edgeft.export.gguf.header import Slot, encode_header, padded, slots_of
from edgeft.export.gguf.stream import Rounder, Target, Weights, round_with_ggml, stream
from edgeft.export.gguf.tensor_types import (
    INPUT_AND_OUTPUT,
    TensorType,
    choose_types,
    fallbacks,
    file_type,
    needs_importance,
)
from edgeft.export.gguf.verify import limits_note, verify_vocabulary
from edgeft.export.gguf.vocabulary import vocabulary_metadata
from edgeft.machine.cores import usable_cores
from edgeft.quant import ggml
from edgeft.quant.ggml import GgmlType
from edgeft.quant.imatrix import Imatrix

LOSSLESS = {"F32": GgmlType.F32, "F64": GgmlType.F32, "F16": GgmlType.F16, "BF16": GgmlType.BF16}
"""The type of a GGUF file that holds a checkpoint of this type without rounding (F64: as torch holds it)."""


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
    adapter: Path | None = None,
    imatrix: Imatrix | None = None,
    types: Mapping[str, GgmlType] | None = None,
    rounder: Rounder | None = None,
    n_threads: int | None = None,
) -> dict[str, str]:
    """Write the model folder `model_dir` as the GGUF file `out`, in the types llama.cpp has for `ftype`.

    The weights are read once, a few rows at a time, the LoRA adapter in the folder `adapter` folded in, and
    packed by `n_threads` threads (None: one a core). They are rounded once, from float32: every tensor is, byte
    for byte, what llama-quantize makes of the file that holds the checkpoint without rounding (BF16 of a bfloat16
    one, F16 of float16, else F32). `imatrix` weighs the error of the columns; `types` are types of single
    tensors in the stead of llama.cpp's rules; `rounder` packs rows instead of ggml's quantizers.

    `name` becomes `general.name`, `provenance` the keys `edgeft.<key>`. The same arguments give the same bytes,
    whatever the threads. `out` appears only when the file is whole and llama.cpp was seen to tokenize a set of
    strings, and `texts`, as transformers does. `architecture` replaces the one config.json names.

    Returns the tensors whose rows do not divide into blocks of their type, with the type taken instead:
    `{"blk.0.attn_q.weight": "q4_K -> q5_0"}`. Raises UsageError for an unknown ftype, or one that needs an
    importance matrix without one; ModelError for an unsupported architecture, tokenizer or adapter, missing,
    damaged or pickled weights, an importance matrix of another model, and where the ids differ; ArtifactError
    when the disk refuses.
    """
    folder = read_folder(model_dir)
    layout = lay_out(folder, open_checkpoint(model_dir), architecture)
    chosen = types_of(layout, ftype, imatrix, types)
    targets = targets_of(layout, ftype, chosen, imatrix)
    metadata: Metadata = {
        **_general_metadata(layout.architecture, ftype, name, imatrix),
        **{f"edgeft.{key}": value for key, value in sorted({**provenance, **limits_note(folder)}.items())},
        **layout.hyperparameters,
        **vocabulary_metadata(folder, layout.n_vocab),
    }
    weights = _weights(layout, adapter)
    n_millions = sum(math.prod(rule.shape) for rule in layout.rules) // 1_000_000
    with (
        writing(out, durable=False) as temporary,
        begin_file(temporary, metadata, targets) as (file, start),
        ThreadPoolExecutor(1, thread_name_prefix="edgeft-verify") as beside,
        log.progress(f"{ftype}: writing {name}", n_millions, "million weights") as done,
    ):
        # Needs no weights; in a pass of many minutes it is known in the first seconds whether the ids agree.
        check = beside.submit(verify_vocabulary, temporary, folder, texts)
        pack, threads = rounder or round_with_ggml, n_threads or usable_cores()
        stream(file, start, targets, weights, rounder=pack, n_threads=threads, done=done, check=check)
        proof = check.result()
    if proof.beyond:
        log.say(f"{name}: {proof} (docs/tokenizers.md)")
    return fallbacks(chosen)


def types_of(
    layout: Layout, ftype: str, imatrix: Imatrix | None = None, types: Mapping[str, GgmlType] | None = None
) -> dict[str, TensorType]:
    """The type of every tensor of the file; arguments and errors as in `write_gguf`."""
    shapes, source = [(rule.name, rule.shape) for rule in layout.rules], _lossless_type(layout.checkpoint)
    weighed = imatrix is not None
    return choose_types(ftype, shapes, layout.hyperparameters, importance=weighed, source=source, types=types)


def targets_of(
    layout: Layout, ftype: str, chosen: Mapping[str, TensorType], imatrix: Imatrix | None = None
) -> list[Target]:
    """Every tensor, of the type `chosen`, with its place and importance; errors as in `write_gguf`."""
    rules, kinds = layout.rules, {name: choice.kind for name, choice in chosen.items()}
    sizes = [
        math.prod(rule.shape[:-1]) * ggml.row_bytes(kinds[rule.name], math.prod(rule.shape[-1:])) for rule in rules
    ]
    slots = slots_of((r.name, r.shape, kinds[r.name], size) for r, size in zip(rules, sizes, strict=True))
    return [Target(rule, slot, _importance(ftype, slot, imatrix)) for rule, slot in zip(rules, slots, strict=True)]


@contextmanager
def begin_file(path: Path, metadata: Metadata, targets: Sequence[Target]) -> Iterator[tuple[int, int]]:
    """Create the file in its full length, its tensors still empty; yields a descriptor, and where the first begins."""
    header = encode_header(metadata, [target.slot for target in targets])
    last = targets[-1].slot
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + padded(last.start + last.n_bytes))
        file.flush()
        yield file.fileno(), len(header)


def _weights(layout: Layout, adapter: Path | None) -> Weights:
    if adapter is None:
        return Weights(layout.checkpoint)
    tied = all(rule.name != "output.weight" for rule in layout.rules)
    return Weights(layout.checkpoint, read_adapter(adapter, layout.checkpoint.tensors, tied=tied))


def _lossless_type(checkpoint: Checkpoint) -> GgmlType:
    """The smallest float type that holds every matrix without rounding."""
    needed = {LOSSLESS[tensor.dtype] for tensor in checkpoint.tensors.values() if len(tensor.shape) > 1}
    return needed.pop() if len(needed) == 1 else GgmlType.F32


def _importance(ftype: str, slot: Slot, imatrix: Imatrix | None) -> np.ndarray | None:
    """How much the columns of a quantized tensor count: (E, cols), or None where the matrix has nothing on it."""
    if ggml.block_size(slot.kind) == 1:
        return None
    found = imatrix.importance(slot.name) if imatrix else None
    if found is None:
        if needs_importance(ftype, slot.name, slot.kind):
            raise UsageError(
                f"{ftype}: the importance matrix has nothing on {slot.name}, which {slot.kind.name} cannot do without; "
                "make it of this model"
            )
        return None
    wanted = (math.prod(slot.shape[:-2]), slot.shape[-1])
    if found.size == math.prod(wanted):
        return found.reshape(wanted)
    if slot.name in INPUT_AND_OUTPUT[:-1]:
        return None  # as in llama-quantize: embeddings are looked up, not multiplied
    raise ModelError(
        f"the importance matrix has {found.shape} on {slot.name}, which is {slot.shape}; make it of this model"
    )


def _general_metadata(architecture: str, ftype: str, name: str, imatrix: Imatrix | None) -> Metadata:
    metadata: Metadata = {
        "general.architecture": architecture,
        "general.type": "model",
        "general.name": name,
        "general.file_type": file_type(ftype),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
    }
    if imatrix is not None:  # as llama-quantize notes it
        metadata["quantize.imatrix.dataset"] = ", ".join(imatrix.datasets)
        metadata["quantize.imatrix.entries_count"] = len(imatrix.sums)
        metadata["quantize.imatrix.chunks_count"] = imatrix.n_chunks
    return metadata
