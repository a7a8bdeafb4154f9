"""Which matrices of a decoder share a node, and the grids they may take."""

import math
from collections.abc import Mapping

from edgeft.export.gguf.architectures import TensorRule
from edgeft.export.onnx.experts import DOWN, GATE_UP
from edgeft.export.onnx.settings import EIGHT_BITS_SINCE, OLDEST, OnnxSettings
from edgeft.quant.grids.onnx import Group

TOGETHER = (("attn_q", "attn_k", "attn_v"), ("ffn_gate", "ffn_up"), (GATE_UP, DOWN))
"""Matrices that the graph multiplies by at once where their grids are the same, which is faster; those of experts
always."""
MIXED = (
    OnnxSettings("int4", 128), OnnxSettings("int4", 64), OnnxSettings("int4", 32),
    OnnxSettings("int4", 32, symmetric=False), OnnxSettings("int8", 128),
)  # fmt: skip


def groups_of(rules: Mapping[str, TensorRule], min_ort: tuple[int, int] = OLDEST) -> dict[str, Group]:
    """The matrices of `rules` by the first of each node, with the grids an onnxruntime of `min_ort` has for them."""
    groups: dict[str, Group] = {}
    for name, rule in rules.items():
        if len(rule.shape) != 2 or not name.endswith(".weight") or name == "position_embd.weight":
            continue
        prefix, _, role = name.removesuffix(".weight").rpartition(".")
        together = next((roles for roles in TOGETHER if role in roles), (role,))
        names = [f"{prefix}.{each}.weight".removeprefix(".") for each in together]
        first, *_ = names = [each for each in names if each in rules]
        shapes = {each: (rules[each].shape[0], rules[each].shape[1]) for each in names}
        n_cols = math.gcd(*(n_cols for _, n_cols in shapes.values()))
        grids = [settings.grid(first, n_cols) for settings in MIXED]
        usable = [grid for grid in grids if grid and (grid.bits == 4 or min_ort >= EIGHT_BITS_SINCE)]
        if usable:
            groups[first] = Group(shapes, tuple(dict.fromkeys(usable)))
    return groups
