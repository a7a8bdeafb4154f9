"""What is computed inside an ONNX decoder, against torch, in the order of the graph's nodes.

Each case asks for one thing a caller may do: a prompt, positions of its own, tokens behind others, padding in front,
the far end of the context. The first one that fails says which input is not followed. In each, three kinds of nodes
are looked at: products with a weight matrix (what they multiply), rotations (the angles) and attention (how many
tokens it is told of).

Shapes: B sequences, T tokens, S of them in one run, C values of each, D pairs of a head.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from edgeft.errors import RuntimeFault
from edgeft.parity.bisect_layers import CAUSES, LAYER_LISTS, PLACES
from edgeft.parity.finding import Finding
from edgeft.parity.watched_onnx import WatchedOnnx
from edgeft.quant.linear_inputs import TensorMap, linear_inputs

PRODUCTS = {"FusedMatMul", "MatMul", "MatMulNBits"}
LIMITS = {"fp32": 1e-3, "fp16": 0.05, "int8": 0.3}
"""Largest relative error of a token's values, by what the graph computes in: rounding adds up over the layers. In
int4 graphs rounding alone can go so far that it hides every fault; only angles and lengths are looked at there."""
ANGLES = 0.01
"""Largest difference of a cosine or sine; float16 has a precision of 0.0005."""
MAX_TOKENS = 48
LOGITS = "logits"
FAILED_NODE = re.compile(r"Name:'([^']+)'")
"""How onnxruntime says in which node it failed, the innermost last."""


@dataclass(frozen=True)
class Case:
    """Inputs (B, T); run in pieces that end at the columns `ends`."""

    said: str
    """What to look at when only this case and not those before it fails."""
    ids: np.ndarray
    mask: np.ndarray
    positions: np.ndarray
    ends: tuple[int, ...]


def cases(ids: Sequence[int], n_context: int) -> list[Case]:
    """The cases made from the tokens of a prompt, the simplest first."""
    row = np.array([list(ids)[: min(MAX_TOKENS, n_context)]], np.int64)
    n = row.shape[1]
    counted, ones, half = np.arange(n)[None], np.ones_like(row), max(1, n // 2)
    gap = np.where(counted < half, counted, np.minimum(counted + n, n_context - n + counted))
    lengths = np.maximum(1, np.array([n, n - n // 3, n // 2]))
    mask = (counted >= n - lengths[:, None]).astype(np.int64)
    padded = np.where(mask, np.tile(row, (3, 1)), 0)
    own = np.maximum(mask.cumsum(axis=1) - 1, 0)
    end = n_context - n + counted
    last = max(1, n - 1)
    return [
        Case("so the graph is wrong whatever it is given", row, ones, counted, (n,)),
        Case("with other position_ids than 0, 1, 2, …: are they followed?", row, ones, gap, (n,)),
        Case("behind tokens of an earlier run: is the length of the past right?", row, ones, counted, (half, last, n)),
        Case("with padding in front: is attention_mask followed?", padded, mask, own, (n,)),
        Case("with padding in front, in a later run: attention_mask and past", padded, mask, own, (last, n)),
        Case("at the end of the context: does the table of angles reach there?", row, ones, end, (n,)),
    ]


def value_findings(
    graph: WatchedOnnx, model: Any, tensors: TensorMap, tried: Sequence[Case], precision: str
) -> Iterator[Finding]:
    """The first value that leaves the reference in one of the cases `tried`.

    `model` is the torch model, `tensors` names of checkpoint tensors by GGUF name, `precision` a key of LIMITS or
    another.
    """
    limit = LIMITS.get(precision, np.inf)
    watched = {name for node in graph.nodes for name in _needed(node)}
    for case in tried:
        reference = _Reference(model, tensors, case)
        past, start = graph.empty_past(len(case.ids)), 0
        for end in case.ends:
            inputs = {
                "input_ids": case.ids[:, start:end],
                "attention_mask": case.mask[:, :end],
                "position_ids": case.positions[:, start:end],
            }
            try:
                values, past = graph.run(inputs, past, [*watched, LOGITS])
            except RuntimeFault as fault:
                *_, node = [LOGITS, *FAILED_NODE.findall(str(fault))]
                yield Finding("node", node, f"{fault}; {case.said}")
                return
            run = _Run(case, start, end, values, reference, limit)
            for node in graph.nodes:
                if problem := run.problem(node):
                    yield Finding("node", node.name, f"{node.name} ({node.op_type}): {problem}; {case.said}")
                    return
            if problem := run.logits_problem():
                yield Finding("node", LOGITS, f"{problem}; {case.said}")
                return
            start = end


def _needed(node: onnx.NodeProto) -> list[str]:
    """Values that must be seen to judge `node`."""
    if node.op_type in PRODUCTS:
        return [node.input[0]]
    if node.op_type == "RotaryEmbedding":
        return list(node.input[1:4])
    if node.op_type == "GroupQueryAttention":
        return [*node.input[5:7], *(node.input[7:9] if _rotates(node) else [])]
    return []


def _rotates(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "do_rotary" and attribute.i for attribute in node.attribute)


class _Reference:
    """What torch computes for a case: inputs of matrices (B, T, C) by GGUF name, angles (B, T, D) by layer, logits."""

    @torch.inference_mode()
    def __init__(self, model: Any, tensors: TensorMap, case: Case) -> None:
        self.inputs: dict[str, np.ndarray] = {}
        self.angles: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        n_sequences, n_tokens = case.ids.shape

        def keep(name: str, inputs: torch.Tensor, expert: tuple[int, int] | None = None) -> None:
            if expert is None:
                self.inputs[name] = inputs.float().cpu().numpy().reshape(n_sequences, n_tokens, -1)

        puts = {"input_ids": case.ids, "attention_mask": case.mask, "position_ids": case.positions}
        with linear_inputs(model, tensors, keep), self._rotations(model):
            given = {name: torch.tensor(put, device=model.device) for name, put in puts.items()}
            self.logits = model(**given, use_cache=False).logits.float().cpu().numpy()

    @contextlib.contextmanager
    def _rotations(self, model: Any) -> Iterator[None]:
        lists = (getattr(model.base_model, name, None) for name in LAYER_LISTS)
        layers = next((found for found in lists if isinstance(found, nn.ModuleList)), ())
        handles = [
            layer.register_forward_pre_hook(self._hook(number), with_kwargs=True) for number, layer in enumerate(layers)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, number: int) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
            if isinstance(angles := kwargs.get("position_embeddings"), tuple):
                cosines, sines = (part.float().cpu().numpy() for part in angles)
                self.angles[number] = (cosines, sines)

        return hook


@dataclass(frozen=True)
class _Run:
    """The columns from `start` to `end` of a case, as the graph computed them.

    Inside the graph padding stands behind the tokens, whereever the caller put it.
    """

    case: Case
    start: int
    end: int
    values: Mapping[str, np.ndarray]
    reference: _Reference
    limit: float

    def problem(self, node: onnx.NodeProto) -> str | None:
        """What is wrong at `node`, or None."""
        if node.op_type in PRODUCTS:
            return self._product(node)
        if node.op_type == "RotaryEmbedding":
            return self._rotation(node, self.values[node.input[1]], node.input[2:4])
        return self._attention(node) if node.op_type == "GroupQueryAttention" else None

    def logits_problem(self) -> str | None:
        """What is wrong with the logits, or None; their padding is where the caller put it."""
        real = self._real()
        return self._off(self.values[LOGITS][real], self._there(self.reference.logits), "the logits leave")

    def _product(self, node: onnx.NodeProto) -> str | None:
        name = node.input[1].split("+")[0].removesuffix(".codes")
        if name not in self.reference.inputs:
            return None
        _, layer, matrix, _ = name.split(".", 3)
        place = PLACES.get(matrix, f"the input of {matrix}")
        found = self._off(
            self._here(self.values[node.input[0]]),
            self._there(self.reference.inputs[name]),
            f"layer {layer}: {place} leaves",
        )
        return found and f"{found} (look at {CAUSES.get(place, 'the norms and scales before it')})"

    def _rotation(self, node: onnx.NodeProto, rows: np.ndarray, names: Sequence[str]) -> str | None:
        """`rows` (B, S): of the tables `names`, for each token."""
        layer = re.search(r"layers\.(\d+)\.", node.name)
        wanted = self.reference.angles.get(int(layer[1])) if layer else None
        if wanted is None:
            return None
        tables, chosen = [self.values[name] for name in names], self._here(rows)
        if chosen.max(initial=0) >= len(tables[0]):
            return f"its table of angles has {len(tables[0])} rows, and row {chosen.max()} is asked for"
        for table, whole in zip(tables, wanted, strict=True):
            there = self._there(whole)[:, : table.shape[1]]
            wrong = np.flatnonzero(~(np.abs(table[chosen] - there).max(axis=1) <= ANGLES))
            if len(wrong):
                position = self._there(self.case.positions[..., None])[wrong[0], 0]
                return f"token {wrong[0]} is not turned by the angles of its position {position}"
        return None

    def _attention(self, node: onnx.NodeProto) -> str | None:
        last, total = (self.values[name].reshape(-1) for name in node.input[5:7])
        wanted = self.case.mask[:, : self.end].sum(axis=1) - 1
        if last.tolist() != wanted.tolist():
            return (
                f"seqlens_k says that the last tokens of its sequences stand at {last.tolist()}; by attention_mask "
                f"it is {wanted.tolist()}"
            )
        if total.tolist() != [self.end]:
            return f"total_sequence_length is {total.tolist()}, but there are {self.end} tokens, past included"
        if not _rotates(node):
            return None
        n_now = self.end - self.start
        first = np.maximum(last - n_now + 1, 0)  # the operator reads the rows of the places its tokens get
        return self._rotation(node, first[:, None] + np.arange(n_now), node.input[7:9])

    def _off(self, here: np.ndarray, there: np.ndarray, said: str) -> str | None:
        off = np.linalg.norm(here - there, axis=1) / np.maximum(np.linalg.norm(there, axis=1), 1e-30)
        wrong = np.flatnonzero(~(off <= self.limit))
        if not len(wrong):
            return None
        return f"{said} the reference at token {wrong[0]} (off by {off[wrong[0]]:.2g} of its length)"

    def _real(self) -> np.ndarray:
        """Which places of this run's columns are tokens, bool (B, S)."""
        return self.case.mask[:, self.start : self.end].astype(bool)

    def _here(self, value: np.ndarray) -> np.ndarray:
        """A value (B, S, …) of the graph at all tokens of this run, one after another."""
        real = self._real()
        return value[np.arange(real.shape[1]) < real.sum(axis=1, keepdims=True)]

    def _there(self, value: np.ndarray) -> np.ndarray:
        """A value (B, T, …) of the reference at the same tokens."""
        return value[:, self.start : self.end][self._real()]
