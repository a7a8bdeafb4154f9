"""A LoRA adapter as a GGUF file of its own, for llama.cpp to load on top of the base's (`llama_adapter_lora_init`).

llama.cpp adds alpha / r · B (A x): `<tensor>.lora_a` is A (r, in), `<tensor>.lora_b` is B (out, r). What an
architecture does to a matrix (rows reordered for the rotary embedding, layers stored transposed) must be done to
the factors; here it is done and the product compared with the changed product. For the embedding, which is looked
up and not multiplied, llama.cpp wants the factors as peft has them: (vocabulary, r) and (width, r).
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from edgeft.artifact import sha256_file, writing
from edgeft.console import Log
from edgeft.errors import ModelError
from edgeft.export.adapter import MERGE_FIRST, Adapter, LowRank, read_adapter
from edgeft.export.folder import Checkpoint, open_checkpoint, read_folder
from edgeft.export.gguf.architectures import Architecture, Metadata, TensorRule
from edgeft.export.gguf.architectures.layout import EMBEDDING, Layout, lay_out
from edgeft.export.gguf.header import encode_header, slots_of
from edgeft.quant.ggml import GgmlType

TOLERANCE = 1e-5
"""How far the product of changed factors may be from the changed product, relative to its largest value."""


def write_lora_gguf(
    model_dir: Path,
    adapter_dir: Path,
    out: Path,
    *,
    name: str,
    provenance: Mapping[str, str],
    log: Log,
    architecture: Architecture | None = None,
) -> None:
    """Write the LoRA adapter in `adapter_dir` of the base in `model_dir` as the GGUF file `out`, in F32.

    `edgeft.base_sha256` in it says which base it is for (`base_sha256`). The same arguments give the same bytes.
    Raises ModelError for an adapter that cannot stand in such a file (modules trained whole, DoRA, …) or does
    not fit the base, and for an unsupported architecture; ArtifactError when the disk refuses.
    """
    layout = lay_out(read_folder(model_dir), open_checkpoint(model_dir), architecture)
    tied = all(rule.name != "output.weight" for rule in layout.rules)
    adapter = read_adapter(adapter_dir, layout.checkpoint.tensors, tied=tied)
    if adapter.whole:
        raise ModelError(f"{adapter_dir}: holds {next(iter(adapter.whole))} whole, no LoRA file can; {MERGE_FIRST}")
    alpha, tensors = _tensors(layout, adapter)
    log.say(f"{out.name}: a LoRA of {len(tensors) // 2} matrices")
    slots = slots_of((key, value.shape, GgmlType.F32, value.nbytes) for key, value in tensors.items())
    metadata: Metadata = {
        "general.architecture": layout.architecture,
        "general.type": "adapter",
        "general.name": name,
        "adapter.type": "lora",
        "adapter.lora.alpha": alpha,
        "edgeft.base_sha256": base_sha256(layout.checkpoint),
        **{f"edgeft.{key}": value for key, value in sorted(provenance.items())},
    }
    with writing(out) as temporary, temporary.open("wb") as file:
        header = encode_header(metadata, slots)
        file.write(header)
        for slot in slots:
            file.seek(len(header) + slot.start)
            file.write(tensors[slot.name].tobytes())


def base_sha256(checkpoint: Checkpoint) -> str:
    """sha256 (hex) of the weights' file; of several, that of the listing `sha256sum *.safetensors` prints."""
    files = sorted({tensor.file for tensor in checkpoint.tensors.values()})
    if len(files) == 1:
        return sha256_file(files[0])
    return hashlib.sha256("".join(f"{sha256_file(f)}  {f.name}\n" for f in files).encode()).hexdigest()


def _tensors(layout: Layout, adapter: Adapter) -> tuple[float, dict[str, np.ndarray]]:
    """alpha of the file, and its tensors; where another layer's alpha / r differs, the difference is put into B."""
    first = next(iter(adapter.low_rank.values()))
    alpha = first.scale * len(first.right)
    tensors: dict[str, np.ndarray] = {}
    left_over = set(adapter.low_rank)
    for rule in layout.rules:
        if not adapter.low_rank.keys() & set(rule.sources):
            continue
        left, right, scale = _changed(rule, adapter)
        left = left * np.float32(scale * len(right) / alpha)
        a, b = (left, right.T) if rule.name == EMBEDDING else (right, left)
        tensors[f"{rule.name}.lora_a"] = np.ascontiguousarray(a, np.float32)
        tensors[f"{rule.name}.lora_b"] = np.ascontiguousarray(b, np.float32)
        left_over.difference_update(rule.sources)
    if left_over:
        raise ModelError(f"{adapter.path}: changes {min(left_over)}, which no {layout.architecture} file holds")
    return alpha, tensors


def _changed(rule: TensorRule, adapter: Adapter) -> tuple[np.ndarray, np.ndarray, float]:
    """The factors of the rule's change applied to an adapted matrix, left (rows, r) and right (r, cols), and scale."""
    if len(rule.sources) == 1:
        pair = adapter.low_rank[rule.sources[0]]
        expected = rule.change(pair.left @ pair.right)
        for left, right in _candidates(rule.change, pair):
            product = left @ right
            if (
                product.shape == expected.shape
                and np.abs(product - expected).max() <= TOLERANCE * np.abs(expected).max()
            ):
                return left, right, pair.scale
    raise ModelError(
        f"{adapter.path}: {rule.name} is made of {' + '.join(rule.sources)} in a way a LoRA file cannot express; "
        f"{MERGE_FIRST}"
    )


def _candidates(change: Callable[..., np.ndarray], pair: LowRank) -> list[tuple[np.ndarray, np.ndarray]]:
    """What the factors may become: rows reordered or left out, or the whole transposed."""
    found = [(pair.right.T, pair.left.T)]
    try:
        found.insert(0, (change(pair.left), pair.right))
    except (ValueError, IndexError):  # the change asks for the matrix's own width
        pass
    return [(left, right) for left, right in found if left.ndim == 2]
