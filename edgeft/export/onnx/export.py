"""All ONNX folders wanted of one model folder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeft import __version__
from edgeft.artifact import refused_writes, write_atomic, writing
from edgeft.console import Log
from edgeft.errors import ModelError
from edgeft.export.adapter import read_adapter
from edgeft.export.folder import ModelFolder, open_checkpoint, read_folder
from edgeft.export.gguf.architectures import architecture_of
from edgeft.export.gguf.architectures.layout import Layout, full_config, lay_out
from edgeft.export.gguf.stream import Weights
from edgeft.export.gguf.tokenizers.base import token_texts
from edgeft.export.onnx.architectures import decoder_of
from edgeft.export.onnx.architectures.base import Decoder
from edgeft.export.onnx.data_file import fill
from edgeft.export.onnx.decoder import build_decoder
from edgeft.export.onnx.folder import files_of, write_surroundings
from edgeft.export.onnx.graph import Graph
from edgeft.export.onnx.matrices import onnx_rules
from edgeft.export.onnx.settings import OnnxSettings
from edgeft.machine.cores import usable_cores
from edgeft.quant.grids import onnx as grids

HEAD_MULTIPLE = 8
"""What GroupQueryAttention demands of a head's width."""
GENERATION = "text-generation-with-past"


def export_onnx(
    model_dir: Path,
    out: Path,
    *,
    entries: Mapping[str, OnnxSettings] | Sequence[OnnxSettings],
    provenance: Mapping[str, str],
    log: Log,
    adapter: Path | None = None,
    n_threads: int | None = None,
) -> list[dict[str, Any]]:
    """Write one folder under `out` for each of `entries` (by its name); returns one record a folder.

    A folder holds the graph, written last, its weights, tokenizer and configuration. The weights are read once for
    each, a few rows at a time, the LoRA adapter in `adapter` folded in. The same arguments give the same bytes,
    whatever the threads. A record has `file` (the graph, relative to `out`), `format`, `ftype` (the entry's name),
    `dtype`, `bytes` (graph and weights) and `min_ort`. Raises ModelError for an unsupported architecture, setting or
    adapter and for missing or damaged weights, UsageError for an onnxruntime too old, ArtifactError when the disk
    refuses.
    """
    if not isinstance(entries, Mapping):
        entries = {entry.name: entry for entry in entries}
    folder = read_folder(model_dir)
    layout, decoder = lay_out_decoder(folder)
    token_texts(folder, layout.n_vocab)  # refuses ids without a row in the embedding
    tied = all(rule.name != "output.weight" for rule in layout.rules)
    changes = read_adapter(adapter, layout.checkpoint.tensors, tied=tied) if adapter else None
    weights = Weights(layout.checkpoint, changes)
    oldest = {name: settings.oldest_ort(decoder) for name, settings in entries.items()}
    records = []
    for name, settings in entries.items():
        files = files_of(settings)
        metadata = {f"edgeft.{key}": value for key, value in sorted(provenance.items())}
        version = ".".join(map(str, oldest[name]))
        with refused_writes(out):
            (out / name / files.graph).parent.mkdir(parents=True, exist_ok=True)
            write_surroundings(folder, out / name, decoder, settings)
        _write_graph(
            out / name, layout, decoder, settings, weights,
            metadata=metadata | {"edgeft.min_ort": version}, label=f"{name}: writing {model_dir.absolute().name}",
            n_threads=n_threads or usable_cores(), log=log,
        )  # fmt: skip
        n_bytes = sum((out / name / file).stat().st_size for file in (files.graph, files.data))
        log.say(f"{name}: {files.graph} ({n_bytes / 1e6:.1f} MB), for onnxruntime {version} and newer")
        records.append(
            {
                "file": f"{name}/{files.graph}",
                "format": "onnx",
                "ftype": name,
                "dtype": settings.dtype,
                "bytes": n_bytes,
                "min_ort": version,
            }
        )
    return records


def lay_out_decoder(folder: ModelFolder) -> tuple[Layout, Decoder]:
    """The tensors of a decoder in `folder`, by GGUF name, and the numbers of its graph.

    Raises ModelError for an unsupported architecture or setting, and unless the checkpoint has exactly the tensors
    that config.json promises.
    """
    read = decoder_of(folder.config, folder.path)
    architecture = architecture_of(folder.config, folder.path)
    decoder = read(full_config(folder.config, architecture))
    if decoder.head_dim % HEAD_MULTIPLE:
        raise ModelError(
            f"config.json: heads of {decoder.head_dim}: onnxruntime's attention takes only multiples of "
            f"{HEAD_MULTIPLE}; export GGUF instead"
        )
    # What llama.cpp's graph lacks does not matter here.
    anything = replace(architecture, hyperparameters=lambda config: {}, other_files=lambda path: {})
    return lay_out(folder, open_checkpoint(folder.path), anything), decoder


def tensor_sources(model_dir: Path) -> dict[str, tuple[str, ...]]:
    """By the name of a graph's tensor, as of GGUF, those of the checkpoint it is made of. Raises as
    `lay_out_decoder`."""
    layout, _ = lay_out_decoder(read_folder(model_dir))
    return {name: rule.sources for name, rule in onnx_rules(layout.rules).items()}


def _write_graph(
    out: Path,
    layout: Layout,
    decoder: Decoder,
    settings: OnnxSettings,
    weights: Weights,
    *,
    metadata: dict[str, str],
    label: str,
    n_threads: int,
    log: Log,
) -> None:
    files = files_of(settings)
    graph = Graph(Path(files.data).name)
    rules = onnx_rules(layout.rules)
    targets = build_decoder(graph, decoder, rules, settings)
    n_millions = sum(math.prod(rule.shape) for rule in rules.values()) // 1_000_000
    rounder = settings.rounder or (lambda name, rows, grid: grids.quantize(rows, grid))
    with (
        writing(out / files.data, durable=False) as temporary,
        temporary.open("wb") as file,
        log.progress(label, n_millions, "million weights") as done,
    ):
        file.truncate(graph.n_data_bytes)
        fill(file.fileno(), targets, weights, rounder=rounder, n_threads=n_threads, done=done)
    model = graph.model("decoder", ("edgeft", __version__), metadata)
    write_atomic(out / files.graph, model.SerializeToString(deterministic=True))
