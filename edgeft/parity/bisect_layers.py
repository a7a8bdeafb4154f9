"""What is computed inside, in llama.cpp and in torch, on the same tokens, in the order llama.cpp computes it.

Two kinds of values are compared, for every architecture alike: what each weight matrix is multiplied with (the
mapping says which module of transformers it belongs to), and the outputs of the layers, the last norm and the head.

Shapes: T tokens, C values of each.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeft.console import Log
from edgeft.export.gguf.architectures.layout import Layout
from edgeft.parity.finding import Finding
from edgeft.quant.linear_inputs import linear_inputs
from edgeft.runtime.llama_eval import Node, WatchedLlama
from edgeft.training.models import load_model

LIMITS = {"f16": 0.05, "q8_0": 0.3}
"""Largest relative error of a token's values, by family of files: rounding adds up over the layers. In files of
smaller types rounding alone can go so far that it hides every fault."""
MAX_TOKENS = 512
LAYER_LISTS = ("layers", "h", "blocks")
"""Where transformers' base models keep their layers."""

LAST_NORM, LOGITS, LAYER = "result_norm", "result_output", "l_out-"
PLACES = {
    "attn_q": "the input of its attention",
    "attn_k": "the input of its attention",
    "attn_v": "the input of its attention",
    "attn_qkv": "the input of its attention",
    "attn_output": "the result of its attention",
    "ffn_gate": "the input of its feed-forward part",
    "ffn_gate_inp": "the input of its router",
    "ffn_up": "the input of its feed-forward part",
    "ffn_down": "the inside of its feed-forward part",
}
"""What a weight matrix is multiplied with."""
CAUSES = {
    "the input of its attention": "the embedding's scale or positions (layer 0), the norm before attention",
    "the result of its attention": "rotary embedding (base, scaling, dimensions), head counts and widths, the scale "
    "of the scores, soft-cap, sliding window, norms of queries and keys",
    "the input of its feed-forward part": "the residual's scale, the norms behind and after attention",
    "the input of its router": "the residual's scale, the norms behind and after attention",
    "the inside of its feed-forward part": "the activation function",
    "its output": "the residual's scale, the norm behind the feed-forward part, the experts' weights",
    "the last norm": "its epsilon",
    "the logits": "the scale of the logits, the soft-cap, whether the head is tied",
}


@dataclass
class _Watch:
    """Compares as llama.cpp goes; remembers the first value beyond the limit."""

    values: Mapping[str, np.ndarray]
    limit: float
    first: tuple[str, int, float] | None = None
    """Its name, the first token, the cosine there."""
    seen: dict[str, int] = field(default_factory=dict)
    """Tokens of each value compared so far: a long sequence comes in pieces."""

    def wants(self, node: Node) -> bool:
        return self.first is None and self.name_of(node) in self.values

    def take(self, node: Node) -> None:
        name = self.name_of(node)
        source = node.sources()[1] if node.op == "MUL_MAT" and name != LOGITS else node
        here = source.array().reshape(-1, source.shape[-1])
        start = self.seen.get(name, 0)
        there = self.values[name][start : start + len(here)]
        self.seen[name] = start + len(here)
        off = np.linalg.norm(here - there, axis=1) / np.maximum(np.linalg.norm(there, axis=1), 1e-30)
        wrong = np.flatnonzero(~(off <= self.limit))
        if len(wrong):
            row = int(wrong[0])
            cosine = float(here[row] @ there[row] / (np.linalg.norm(here[row]) * np.linalg.norm(there[row])))
            self.first = (name, start + row, cosine)

    @staticmethod
    def name_of(node: Node) -> str:
        """A product goes by its weight, every other value by its own name."""
        if node.op == "MUL_MAT" and node.name != LOGITS:
            return node.sources()[0].name
        return node.name


def layer_findings(
    model_dir: Path,
    path: Path,
    layout: Layout,
    sequences: Sequence[Sequence[int]],
    family: str,
    log: Log,
    n_threads: int | None = None,
) -> Iterator[Finding]:
    """The first value that leaves the reference on one of `sequences`, each cut at MAX_TOKENS.

    Files of a `family` without a limit are not looked at. Raises what loading the model and the file raises.
    """
    if family not in LIMITS:
        log.say(f"{path.name}: rounded too far to compare layers; where its weights agree, bisect an F16 export")
        return
    tensors = {rule.name: rule.sources for rule in layout.rules}
    longest = min(MAX_TOKENS, max(map(len, sequences)))
    reference: Any = load_model(model_dir).eval()
    progress_of = log.progress("bisect: layers", len(sequences), "sequences")
    with WatchedLlama(path, n_ctx=longest, n_threads=n_threads) as model, progress_of as progress:
        for done, sequence in enumerate(sequences, 1):
            ids = list(sequence)[: model.n_ctx]
            watch = _Watch(_reference_values(reference, ids, tensors), LIMITS[family])
            model.watch(ids, watch.wants, watch.take)
            if watch.first is not None:
                yield _finding(*watch.first)
                return
            progress.update(done)


@torch.inference_mode()
def _reference_values(model: Any, ids: list[int], tensors: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """By llama.cpp's name, (T, C) float32 each."""
    values: dict[str, np.ndarray] = {}

    def keep(name: str, inputs: torch.Tensor, expert: tuple[int, int] | None = None) -> None:
        if expert is None:
            values[name] = inputs.float().cpu().numpy()

    with linear_inputs(model, tensors, keep), _layer_outputs(model, keep):
        output = model(torch.tensor([ids], device=model.device), use_cache=False, output_hidden_states=True)
    keep(LAST_NORM, output.hidden_states[-1][0])
    keep(LOGITS, output.logits[0])
    return values


@contextlib.contextmanager
def _layer_outputs(model: Any, keep: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    lists = (getattr(model.base_model, name, None) for name in LAYER_LISTS)
    layers = next((found for found in lists if isinstance(found, nn.ModuleList)), ())
    handles = [layer.register_forward_hook(_output_hook(f"{LAYER}{i}", keep)) for i, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _output_hook(name: str, keep: Callable[[str, torch.Tensor], None]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        keep(name, states.reshape(-1, states.shape[-1]))

    return hook


def _finding(name: str, token: int, cosine: float) -> Finding:
    if name.startswith("blk."):
        _, layer, matrix, _ = name.split(".", 3)
        place = PLACES.get(matrix, f"the input of {matrix}")
        where = f"layer {layer}: {place}"
    elif name.startswith(LAYER):
        place = "its output"
        where = f"layer {name.removeprefix(LAYER)}: {place}"
    else:
        where = place = "the last norm" if name == LAST_NORM else "the logits"
    causes = CAUSES.get(place, "the norms and scales before it")
    since = "" if token == 0 else f", from token {token} on"
    message = (
        f"{where} leaves the reference (cosine {cosine:.2f}{since}); keys, tokens and weights agree with the "
        f"checkpoint, so look at what the mapping makes of: {causes}"
    )
    return Finding("layer", name, message)
