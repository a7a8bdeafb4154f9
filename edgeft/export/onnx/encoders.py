"""Encoders (BERT, MiniLM, RoBERTa, DistilBERT, ModernBERT) as ONNX folders, built straight from a model folder.

Inputs, outputs and file names are optimum's, so that its `ORTModelFor…` classes and transformers.js take them:
`input_ids` and `attention_mask` (B, S) int64, `token_type_ids` where the model has them; `logits`, or
`last_hidden_state` and `sentence_embedding`. Both dimensions are free.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper
from tokenizers import Tokenizer

from edgeft import __version__
from edgeft.artifact import refused_writes, writing
from edgeft.console import Log
from edgeft.errors import DataError, ModelError
from edgeft.export.folder import Checkpoint, ModelFolder, open_checkpoint, read_folder
from edgeft.export.gguf.architectures._encoder import IGNORED
from edgeft.export.gguf.architectures._pooling import sentence_pooling, sentence_steps
from edgeft.export.gguf.tokenizers.base import token_texts
from edgeft.export.onnx.encoder_bodies import BODIES, Body
from edgeft.export.onnx.encoder_graph import IDS, MASK, TYPES, EncoderGraph, Observer
from edgeft.export.onnx.encoder_heads import Pooling, Task, add_outputs, task_of
from edgeft.export.onnx.encoder_products import DynamicInt8, Float, Products, StaticInt8
from edgeft.export.onnx.encoder_ranges import CalibrateMethod, Runs, find_ranges
from edgeft.export.onnx.encoder_scalings import find_scalings
from edgeft.export.onnx.folder import SUFFIXES, add_to_config, copy_files, say_external_data
from edgeft.export.onnx.int8_columns import quantize_columns, quantize_pairs
from edgeft.runtime.ort import onnxruntime

EncoderDtype = Literal["fp32", "fp16", "int8", "int8_static"]
EncoderLayout = Literal["plain", "transformers.js"]
MODEL = "model.onnx"
FLOATS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}
LARGEST_FILE_BYTES = 2**31 - 2**20
"""A protocol buffer holds less than 2 GiB; the weights of a larger model lie in a file beside it."""
SMALL_BYTES = 1024
"""A smaller tensor stays in the graph: onnxruntime reads axes and the like before it opens any other file."""
CALIBRATION_TOKENS = 512
"""Longest text to calibrate on."""
COPIED = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "modules.json",
    "config_sentence_transformers.json", "sentence_bert_config.json", "1_Pooling/config.json",
)  # fmt: skip
UNUSED = (*IGNORED, "vocab_*", "decoder.*")
PROCESSORS = "edgeft_int8_processors"
"""Key of config.json."""
HEAD = ("classifier.*", "pre_classifier.*", "head.*")
"""Weights of a head, which no vector needs."""


@dataclass(frozen=True)
class EncoderSettings:
    """One entry of `export.encoder`.

    `fp32` and `fp16` are float graphs. `int8` rounds weights once and inputs in every run, to the range of the whole
    batch; `int8_static` to ranges found on calibration texts by `calibrate_method`, so that a text's result depends
    on nothing but itself. With texts the channels of inputs are evened out for both (`encoder_scalings`).
    `reduce_range` keeps int8 weights to what every processor adds up exactly (`int8_columns`); without it the file is
    for processors with VNNI alone, and says so.
    """

    dtype: EncoderDtype = "int8"
    calibrate_method: CalibrateMethod = "minmax"
    layout: EncoderLayout = "plain"
    reduce_range: bool = True

    @property
    def processors(self) -> str | None:
        """Those that int8 products are exact on, `any` or `vnni`; None for floats."""
        return None if self.dtype in FLOATS else "any" if self.reduce_range else "vnni"

    @property
    def name(self) -> str:
        """As the folder is called: the dtype, with `-vnni` where the file is for such processors alone."""
        return f"{self.dtype}-vnni" if self.processors == "vnni" else self.dtype

    @property
    def graph(self) -> str:
        """The graph's file in its folder: `model.onnx`, or transformers.js' `onnx/model_quantized.onnx`."""
        if self.layout == "plain":
            return MODEL
        return f"onnx/model{SUFFIXES[self.dtype.removesuffix('_static')]}.onnx"

    @property
    def data(self) -> str:
        """The file of weights that no graph could hold, beside it."""
        return f"{self.graph}.data" if self.layout == "plain" else f"{self.graph}_data"


def is_encoder(config: Mapping[str, Any]) -> bool:
    """Whether config.json names an encoder that can be exported here."""
    return config.get("model_type") in BODIES


def export_encoder(
    model_dir: Path,
    out: Path,
    *,
    settings: EncoderSettings,
    log: Log,
    task: Task | None = None,
    texts: Sequence[str] = (),
    provenance: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write the folder `out`: config.json, the tokenizer, and last the graph; returns its record.

    `task` None is what the model was trained for. `texts` calibrate int8; `int8_static` cannot do without. The record
    has `file`, `format`, `dtype`, `task`, and `bytes` of the graph with its weights. Raises ModelError for an
    architecture, head or pooling that is not there, weights that do not fit config.json, and values too large for
    fp16; DataError for `int8_static` without texts.
    """
    folder = read_folder(model_dir)
    source = EncoderSource.open(folder, task)
    token_texts(folder, source.config["vocab_size"])  # refuses ids without a row in the embedding
    with log.progress(f"onnx {settings.dtype}", 1, "file") as progress:
        products = _products(source, settings, texts)
        graph = source.build(products)
        with refused_writes(out):
            copy_files(folder, out, COPIED)
            if settings.processors == "vnni":
                add_to_config(out, {PROCESSORS: "vnni"})
            (out / settings.graph).parent.mkdir(parents=True, exist_ok=True)
        _write(graph, out, settings, _metadata(source, settings, provenance or {}))
        progress.update(1)
    size = sum((out / name).stat().st_size for name in (settings.graph, settings.data) if (out / name).is_file())
    return {"file": settings.graph, "format": "onnx", "dtype": settings.dtype, "task": source.task, "bytes": size}


@dataclass(frozen=True)
class EncoderSource:
    """A model folder, read as one architecture for one task."""

    folder: ModelFolder
    body: Body
    config: dict[str, Any]
    checkpoint: Checkpoint
    task: Task
    pooling: Pooling | None
    normalize: bool

    @classmethod
    def open(cls, folder: ModelFolder, task: Task | None) -> "EncoderSource":
        """`task` None is what the model was trained for. Raises ModelError as `export_encoder`."""
        body = _body(folder)
        checkpoint = open_checkpoint(folder.path)
        task = task or task_of(folder.config)
        pooling: Any = sentence_pooling(folder.path, "the ONNX graph") if task == "feature-extraction" else None
        return cls(
            folder=folder,
            body=body,
            config=body.config(folder.config),
            checkpoint=replace(checkpoint, tensors=_renamed(checkpoint, body)),
            task=task,
            pooling=pooling,
            normalize="Normalize" in sentence_steps(folder.path)[0],
        )

    @property
    def n_ctx(self) -> int:
        """Tokens of the longest text. RoBERTa's first positions belong to no token."""
        positions: int = self.config["max_position_embeddings"]
        return positions - (self.config["pad_token_id"] + 1 if self.body.skips_positions else 0)

    def build(self, products: Products, observer: Observer | None = None) -> EncoderGraph:
        """The graph with its outputs. Raises ModelError as `export_encoder`."""
        graph = EncoderGraph(self.checkpoint, self.config, products, observer=observer)
        add_outputs(graph, self.body.build(graph), self.task, self.pooling, normalize=self.normalize)
        self._check_all_used(graph)
        return graph

    def _check_all_used(self, graph: EncoderGraph) -> None:
        unused = (*UNUSED, *HEAD) if self.task == "feature-extraction" else UNUSED
        names = (name for name in self.checkpoint.tensors if name not in graph.used)
        left = [name for name in names if not any(fnmatchcase(name, pattern) for pattern in unused)]
        if left:
            raise ModelError(
                f"{self.folder.path}: by config.json {len(left)} tensors have no place in a {self.task} graph of "
                f"{self.config['model_type']}: {', '.join(sorted(left)[:5])}"
            )


def _body(folder: ModelFolder) -> Body:
    model_type = folder.config.get("model_type")
    if model_type not in BODIES:
        classes = ", ".join(folder.config.get("architectures") or ["no class named"])
        raise ModelError(
            f"{folder.path}: {model_type!r} ({classes}) is no encoder that can be exported to ONNX; supported: "
            f"{', '.join(sorted(BODIES))}; decoders are exported with the task text-generation-with-past"
        )
    return BODIES[model_type]


def _renamed(checkpoint: Checkpoint, body: Body) -> dict[str, Any]:
    renamed = {}
    for name, tensor in checkpoint.tensors.items():
        for other, usual in body.known.renames:
            name = re.sub(other, usual, name)
        renamed[name] = tensor
    return renamed


def _products(source: EncoderSource, settings: EncoderSettings, texts: Sequence[str]) -> Products:
    if settings.dtype in FLOATS:
        return Float(FLOATS[settings.dtype])
    if settings.dtype == "int8_static" and not texts:
        raise DataError("int8_static needs texts to calibrate on; give training texts, or export int8")
    quantize = quantize_pairs if settings.reduce_range else quantize_columns
    if not texts:
        return DynamicInt8(quantize=quantize)
    inputs: dict[str, str] = {}
    weights: dict[str, np.ndarray] = {}

    def observe(name: str, value: str, weight: np.ndarray) -> None:
        inputs[name], weights[name] = value, weight

    model = source.build(Float(), observe).graph.model(MODEL, _producer(), {})
    for value in dict.fromkeys(inputs.values()):
        model.graph.output.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    runs = Runs(session, inputs, _feeds(source, texts, {each.name for each in session.get_inputs()}))
    scalings = find_scalings(runs, weights, quantize)
    if settings.dtype == "int8":
        return DynamicInt8(scalings, quantize=quantize)
    ranges = find_ranges(replace(runs, scalings=scalings), settings.calibrate_method)
    return StaticInt8(scalings, quantize=quantize, ranges=ranges)


def _feeds(source: EncoderSource, texts: Sequence[str], names: set[str]) -> list[dict[str, np.ndarray]]:
    """What the graph is given for each text, cut to the length that the model takes."""
    tokenizer = Tokenizer.from_str(json.dumps(source.folder.tokenizer))
    tokenizer.no_padding()
    tokenizer.enable_truncation(min(source.n_ctx, CALIBRATION_TOKENS))
    feeds = []
    for text in texts:
        ids = np.array([tokenizer.encode(text).ids], np.int64)
        every = {IDS: ids, MASK: np.ones_like(ids), TYPES: np.zeros_like(ids)}
        feeds.append({name: every[name] for name in names})
    return feeds


def _producer() -> tuple[str, str]:
    return "edgeft", __version__


def _metadata(source: EncoderSource, settings: EncoderSettings, provenance: Mapping[str, str]) -> dict[str, str]:
    known: dict[str, str] = {"task": source.task, "dtype": settings.dtype, "n_ctx": str(source.n_ctx)}
    if settings.dtype == "int8_static":
        known["calibrate_method"] = settings.calibrate_method
    if settings.processors:
        known["int8_processors"] = settings.processors
    return {f"edgeft.{key}": str(value) for key, value in {**known, **provenance}.items()}


def _write(graph: EncoderGraph, out: Path, settings: EncoderSettings, metadata: dict[str, str]) -> None:
    """The graph, and its weights in a file of their own where they are too many."""
    model = graph.graph.model(graph.config["model_type"], _producer(), metadata)
    n_bytes = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if n_bytes > LARGEST_FILE_BYTES:
        with writing(out / settings.data, durable=False) as data, data.open("wb") as file:
            for tensor in model.graph.initializer:
                if len(tensor.raw_data) >= SMALL_BYTES:
                    _move_out(tensor, file, Path(settings.data).name)
        if settings.layout == "transformers.js":
            say_external_data(out, Path(settings.graph).name)
    with writing(out / settings.graph, durable=False) as path:
        path.write_bytes(model.SerializeToString(deterministic=True))


def _move_out(tensor: onnx.TensorProto, file: Any, name: str) -> None:
    """Append the tensor's bytes to `file`, which is called `name`, and leave a reference to them."""
    start = file.tell()
    file.write(tensor.raw_data)
    for key, value in {"location": name, "offset": start, "length": len(tensor.raw_data)}.items():
        tensor.external_data.add(key=key, value=str(value))
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
