"""The experts of a layer as onnxruntime's MoE and QMoE take them (`docs/ContribOperators.md`).

Both read the rows of gate and up in turn (`swiglu_fusion=1`, the only way their kernels for processors have), expert
after expert. Shapes: E experts, I values inside one, W width.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from edgeft.export.gguf.architectures import TensorRule
from edgeft.export.gguf.architectures.base import unchanged

GATE, UP, GATE_UP, DOWN = (f"ffn_{part}_exps" for part in ("gate", "up", "gate_up", "down"))
ROUTER = "ffn_gate_inp"


def joined_experts(rules: Mapping[str, TensorRule]) -> Iterator[TensorRule]:
    """`rules` with gate and up of all experts as one matrix (E 2 I, W), and down as (E W, I)."""
    for name, rule in rules.items():
        prefix, _, role = name.removesuffix(".weight").rpartition(".")
        if role == GATE:
            yield _gate_and_up(f"{prefix}.{GATE_UP}.weight", rule, rules[f"{prefix}.{UP}.weight"])
        elif role == DOWN:
            n_experts, width, inner = rule.shape
            yield replace(rule, shape=(n_experts * width, inner), change=_one_after_another)
        elif role != UP:
            yield rule


def each_expert(rule: TensorRule, n_experts: int) -> tuple[TensorRule, ...]:
    """The parts of a rule of `joined_experts`, so that only one expert at a time need be in memory."""
    n_sources = len(rule.sources) // n_experts
    assert rule.stored is not None
    return tuple(
        replace(
            rule,
            sources=rule.sources[first : first + n_sources],
            stored=rule.stored[first : first + n_sources],
            shape=(rule.shape[0] // n_experts, rule.shape[1]),
            change=unchanged if n_sources == 1 else rule.change,
        )
        for first in range(0, len(rule.sources), n_sources)
    )


def _gate_and_up(name: str, gate: TensorRule, up: TensorRule) -> TensorRule:
    n_experts, inner, width = gate.shape
    sources = tuple(source for pair in zip(gate.sources, up.sources, strict=True) for source in pair)
    stored = ((inner, width),) * len(sources)
    return TensorRule(name, sources, (n_experts * 2 * inner, width), _rows_in_turn, stored)


def _rows_in_turn(*matrices: np.ndarray) -> np.ndarray:
    """Of gate and up of each expert: a row of the one, a row of the other."""
    gate, up = np.stack(matrices[0::2]), np.stack(matrices[1::2])
    return np.stack([gate, up], axis=2).reshape(-1, gate.shape[-1])


def _one_after_another(*matrices: np.ndarray) -> np.ndarray:
    return np.concatenate(matrices)
