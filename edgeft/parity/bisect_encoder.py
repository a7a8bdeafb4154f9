"""Where an encoder's ONNX folder first leaves the model folder it was made from.

Looked at in the order in which one explains the next: the ids of texts, the weights, dequantized, and then the input
of every product against torch, in the order of the graph's nodes, for one text and for several padded to one length.
Weights and products have the names that the exporter gives them; of another exporter's graph only ids and what comes
out are compared.

Shapes: B texts, S tokens of the longest, K inputs and N outputs of a product, C values.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import transformers
from onnx import numpy_helper
from torch import nn

from edgeft.console import Log
from edgeft.export.folder import read_folder
from edgeft.export.onnx.encoder_products import Float
from edgeft.export.onnx.encoders import EncoderSource
from edgeft.parity.bisect_prompts import token_finding
from edgeft.parity.encoders import load_encoder
from edgeft.parity.finding import Finding
from edgeft.parity.onnx_values import LIMITS
from edgeft.parity.watched_onnx import WatchedOnnx
from edgeft.quant.linear_inputs import modules_by_name
from edgeft.runtime.int8_pairs import PAIR_LIMIT
from edgeft.runtime.onnx_file import check_onnx, find_file
from edgeft.runtime.onnx_vocabulary import OnnxVocabulary
from edgeft.training.models import load_tokenizer

PRODUCTS = {"DynamicQuantizeMatMul", "MatMul"}
ROUNDING = {"DequantizeLinear", "Mul", "QuantizeLinear"}
"""What may stand between a value and the int8 product that takes it."""
CLASSES = {
    "feature-extraction": "AutoModel",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
}
OUTPUTS = ("logits", "last_hidden_state")
"""Called alike in the graph and in torch."""
FIRST_OF = (".query", ".q_lin")
"""The module with the input of a product that stands for several."""
N_TEXTS = 4
SLACK = 1e-3
"""Of half a step of a grid, and of a float16's error, for how scales were rounded themselves."""


def bisect_encoder(
    model_dir: Path, path: Path, texts: Sequence[str], log: Log, *, n_threads: int | None = None
) -> Finding | None:
    """The first place where the ONNX file or folder `path` is not the encoder of `model_dir`; None where there is none.

    `texts` (at least one) are tokenized; the longest few are run. Raises ModelError for a folder that cannot be
    exported or a file that must not be loaded, RuntimeFault when onnxruntime refuses it.
    """
    graph = WatchedOnnx(path, n_threads=n_threads)
    task: Any = check_onnx(graph.path).metadata.get("edgeft.task")
    source = EncoderSource.open(read_folder(model_dir), task)
    rows: list[list[int]] = []

    def computed() -> Iterator[Finding]:
        model = load_encoder(model_dir, getattr(transformers, CLASSES[source.task]))
        for case in _cases(sorted(rows, key=len)[-N_TEXTS:], source.config["pad_token_id"]):
            yield from _value_findings(graph, model, case)

    log.say(f"bisect: {graph.path}: ids, weights and what is computed")
    findings = chain(_token_findings(model_dir, path, texts, rows), _weight_findings(graph, source), computed())
    return next(findings, None)


def _token_findings(model_dir: Path, path: Path, texts: Sequence[str], rows: list[list[int]]) -> Iterator[Finding]:
    """Texts with other ids; `rows` gets the ids of each, as long as the model takes."""
    tokenizer: Any = load_tokenizer(model_dir)
    vocabulary = OnnxVocabulary(find_file(path)[1])
    for text in texts:
        theirs, ours = tokenizer(text)["input_ids"], vocabulary.tokenize(text, add_special=True)
        if ours != theirs:
            yield token_finding(tokenizer, vocabulary, "onnxruntime", text, ours, theirs)
        rows.append(tokenizer(text, truncation=True)["input_ids"])


def _weight_findings(graph: WatchedOnnx, source: EncoderSource) -> Iterator[Finding]:
    """Tensors that are missing, or farther from the checkpoint's than their type allows."""
    wanted = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in source.build(Float()).graph.model("wanted", ("edgeft", ""), {}).graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    if wanted.keys().isdisjoint(graph.initializers):
        return
    for name, there in wanted.items():
        if name not in graph.initializers:
            yield Finding("tensor", name, f"{name} is missing from the graph")
            continue
        here = graph.initializer(name)
        if here.shape != there.shape:
            yield Finding("tensor", name, f"{name} has shape {here.shape} in the graph, {there.shape} by config.json")
            continue
        wrong = ~(np.abs(_values(graph, name, here) - there) <= _allowed(graph, name, here, there))
        if wrong.any():
            at = tuple(int(each) for each in np.argwhere(wrong)[0])
            message = f"{name}: {int(wrong.sum())} of {wrong.size} values are not the checkpoint's, the first at {at}"
            yield Finding("tensor", name, message)


def _values(graph: WatchedOnnx, name: str, stored: np.ndarray) -> np.ndarray:
    """What stored numbers mean, in float32, channels that were evened out brought back."""
    if stored.dtype != np.int8:
        return stored.astype(np.float32)
    values = stored.astype(np.float32) * graph.initializer(_scale(graph, name))
    return values * _inverse(graph, name)


def _allowed(graph: WatchedOnnx, name: str, stored: np.ndarray, there: np.ndarray) -> np.ndarray:
    """How far a value may be from the checkpoint's: half a step of its grid, and what a pair of weights was too large
    for 16 bits."""
    if stored.dtype == np.int8:
        step = np.abs(graph.initializer(_scale(graph, name)) * _inverse(graph, name))
        excess = 0 if _is_table(graph, name) else _excess(there / step)
        return np.asarray((0.5 + SLACK + excess) * step + SLACK * np.abs(there))
    if stored.dtype == np.float16:
        return np.asarray(np.abs(there) * np.finfo(np.float16).eps + np.finfo(np.float16).smallest_subnormal)
    return np.asarray(np.abs(there) * 1e-6)


def _excess(values: np.ndarray) -> np.ndarray:
    """By how many steps the values (K, N) of rows 2i and 2i + 1, if of one sign, are beyond `PAIR_LIMIT` together."""
    excess = np.zeros_like(values)
    end = len(values) // 2 * 2
    upper, lower = values[0:end:2], values[1:end:2]
    both = np.where(upper * lower > 0, np.maximum(0, np.abs(upper) + np.abs(lower) - PAIR_LIMIT), 0)
    excess[0:end:2] = excess[1:end:2] = both
    return excess


def _scale(graph: WatchedOnnx, name: str) -> str:
    """Of a table its own name's, of a product the one beside its weight."""
    return f"{name if _is_table(graph, name) else name.removesuffix('.weight')}.scale"


def _is_table(graph: WatchedOnnx, name: str) -> bool:
    """Whether rows of `name` are looked up."""
    return f"{name}.scale" in graph.initializers


def _inverse(graph: WatchedOnnx, name: str) -> np.ndarray:
    """(K, 1): what a product's inputs are multiplied by before they are rounded; 1 where they are not."""
    scaling = f"{name.removesuffix('.weight')}.scaling"
    return graph.initializer(scaling)[:, None] if scaling in graph.initializers else np.ones((1, 1), np.float32)


@dataclass(frozen=True)
class _Case:
    """`ids` and `mask` (B, S), and what to look at when this case fails and the one before does not."""

    said: str
    ids: np.ndarray
    mask: np.ndarray


def _cases(rows: Sequence[Sequence[int]], pad: int) -> list[_Case]:
    longest = np.array([rows[-1]], np.int64)
    cases = [_Case("so the graph is wrong whatever it is given", longest, np.ones_like(longest))]
    lengths = np.array(
        [max(1, len(row) - at) for at, row in enumerate(reversed(rows))] + [max(1, longest.shape[1] // 4)]
    )
    mask = (np.arange(longest.shape[1]) < lengths[:, None]).astype(np.int64)
    ids = np.where(mask, longest, pad)
    said = "with texts of several lengths in a batch: is attention_mask followed?"
    return [*cases, _Case(said, ids, mask)]


def _value_findings(graph: WatchedOnnx, model: Any, case: _Case) -> Iterator[Finding]:
    """The first product whose input leaves torch's, or what comes out."""
    modules = modules_by_name(model)
    made = {output: node for node in graph.nodes for output in node.output}
    products = {
        node.name: (module, _taken(node, made))
        for node in graph.nodes
        if node.op_type in PRODUCTS and (module := _module(node.name, modules)) is not None
    }
    wanted, results = _reference(model, {name: module for name, (module, _) in products.items()}, case)
    given = {"input_ids": case.ids, "attention_mask": case.mask, "token_type_ids": np.zeros_like(case.ids)}
    ends = [name for name in OUTPUTS if name in graph.outputs]
    values, _ = graph.run(given, {}, [*{taken for _, taken in products.values()}, *ends])
    precision, before = _precision(graph), "the embeddings"
    for name, (_, taken) in products.items():
        if problem := _off(values[taken], wanted[name], case.mask, precision):
            message = f"{name}: its input leaves the reference {problem}; look between it and {before}; {case.said}"
            yield Finding("node", name, message)
        before = name
    for name in ends:
        if problem := _off(values[name], results[name], case.mask, precision):
            yield Finding("node", name, f"{name} leaves the reference {problem}; look behind {before}; {case.said}")


def _module(name: str, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """torch's module with the input of the product `name`."""
    above = name.rpartition(".")[0]
    return next((modules[each] for each in (name, *(above + part for part in FIRST_OF)) if each in modules), None)


def _taken(node: onnx.NodeProto, made: Mapping[str, onnx.NodeProto]) -> str:
    """The value that a product takes, before it is rounded."""
    value: str = node.input[0]
    while (maker := made.get(value)) and maker.op_type in ROUNDING and maker.name.startswith(f"{node.name}."):
        value = maker.input[0]
    return value


@torch.inference_mode()
def _reference(
    model: Any, modules: Mapping[str, nn.Module], case: _Case
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What goes into `modules`, by name, and what comes out of the model."""
    seen: dict[str, np.ndarray] = {}

    def keep(name: str) -> Any:
        return lambda _, args: seen.update({name: args[0].float().cpu().numpy()})

    handles = [module.register_forward_pre_hook(keep(name)) for name, module in modules.items()]
    try:
        made = model(input_ids=torch.from_numpy(case.ids), attention_mask=torch.from_numpy(case.mask))
    finally:
        for handle in handles:
            handle.remove()
    return seen, {name: made[name].float().cpu().numpy() for name in OUTPUTS if name in made}


def _off(here: np.ndarray, there: np.ndarray, mask: np.ndarray, precision: str) -> str | None:
    """Where a value (B, S, C) or (B, C) differs, as far as it is of tokens.

    Rounding to int8 moves single tokens far, so there a text's middle token decides; else every token does.
    """
    off = np.linalg.norm(here.astype(np.float32) - there, axis=-1) / np.maximum(np.linalg.norm(there, axis=-1), 1e-30)
    rows = [row[real.astype(bool)] if here.ndim == 3 else row[None] for row, real in zip(off, mask, strict=True)]
    for text, row in enumerate(rows):
        judged = np.array([np.median(row)]) if precision == "int8" else row
        wrong = np.flatnonzero(~(judged <= LIMITS[precision]))
        if len(wrong):
            token = int(row.argmax()) if precision == "int8" else int(wrong[0])
            where = f"at token {token} of text {text}" if here.ndim == 3 else f"for text {text}"
            return f"{where} (off by {row[token]:.2g} of its length)"
    return None


def _precision(graph: WatchedOnnx) -> str:
    kinds = {tensor.data_type for tensor in graph.initializers.values()}
    if onnx.TensorProto.INT8 in kinds:
        return "int8"
    return "fp16" if onnx.TensorProto.FLOAT16 in kinds else "fp32"
