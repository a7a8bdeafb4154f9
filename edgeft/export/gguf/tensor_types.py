"""Which type each tensor of a GGUF file gets: llama.cpp's own rules for its file types.

Checked against `src/llama-quant.cpp` of the llama.cpp that llama-cpp-python 0.3.36 ships, and in the tests by
its `llama_model_quantize`. The rules go by names: `ffn_down` of the first eighth of the layers, `attn_v` where
query heads share keys, an output matrix that is also the embedding, …; and a matrix whose rows do not divide
into a type's blocks falls back to one with smaller blocks.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gguf import LlamaFileType

from edgeft.errors import UsageError
from edgeft.export.gguf.type_rules import Counters, Model, category, preferred_type
from edgeft.quant import ggml
from edgeft.quant.ggml import GgmlType, block_size

DEFAULT_TYPES = {
    "F32": "F32", "F16": "F16", "BF16": "BF16", "Q8_0": "Q8_0",
    "Q6_K": "Q6_K", "Q5_K_M": "Q5_K", "Q5_K_S": "Q5_K", "Q5_1": "Q5_1", "Q5_0": "Q5_0",
    "Q4_K_M": "Q4_K", "Q4_K_S": "Q4_K", "Q4_1": "Q4_1", "Q4_0": "Q4_0", "IQ4_NL": "IQ4_NL", "IQ4_XS": "IQ4_XS",
    "Q3_K_L": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_S": "Q3_K", "IQ3_M": "IQ3_S", "IQ3_S": "IQ3_S", "IQ3_XS": "IQ3_S",
    "IQ3_XXS": "IQ3_XXS", "Q2_K": "Q2_K", "Q2_K_S": "Q2_K", "IQ2_M": "IQ2_S", "IQ2_S": "IQ2_XS", "IQ2_XS": "IQ2_XS",
    "IQ2_XXS": "IQ2_XXS", "IQ1_M": "IQ1_M", "IQ1_S": "IQ1_S", "TQ2_0": "TQ2_0", "TQ1_0": "TQ1_0",
}  # fmt: skip
"""The type most matrices of a file have (`llama_ftype_get_default_type`)."""

FLOAT_FTYPES = ("F32", "F16", "BF16")
FTYPES = tuple(DEFAULT_TYPES)

# Types with blocks of 256, each with the one of 32 that takes its place.
FALLBACKS = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
NEED_IMPORTANCE = ("IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S")
INPUT_AND_OUTPUT = ("token_embd.weight", "per_layer_token_embd.weight", "output.weight")

# Matrices the converter leaves in float32 and the quantizer as they are, by a part of the name.
ALWAYS_FLOAT32 = re.compile(
    r"_norm\.weight$|ffn_gate_inp\.weight|^position_embd\.weight$|^token_types\.weight$|ssm_conv1d|shortconv\.conv"
    r"|time_mix_(first|w[012]|v[012]|a[012]|g[12]|decay_w[12]|lerp_fused)\.weight|attn_rel_b\.weight"
)
LAYER = re.compile(r"blk\.(\d+)\.")
LAYERS_OF_70B = {"llama": 80, "qwen2": 80, "olmo": 80, "deci": 80, "jais2": 68}
"""Layers of the models that llama.cpp takes for a 70B one, by architecture."""


@dataclass(frozen=True)
class TensorType:
    """The type a tensor gets. `wanted`: the one the rules name, another where rows do not divide into blocks."""

    kind: GgmlType
    wanted: GgmlType


def tensor_types(
    ftype: str, tensors: Sequence[tuple[str, tuple[int, ...]]], hyperparameters: Mapping[str, Any], *, importance: bool
) -> dict[str, GgmlType]:
    """The type of every tensor, as llama-quantize chooses it; see `choose_types`."""
    chosen = choose_types(ftype, tensors, hyperparameters, importance=importance)
    return {name: choice.kind for name, choice in chosen.items()}


def choose_types(
    ftype: str,
    tensors: Sequence[tuple[str, tuple[int, ...]]],
    hyperparameters: Mapping[str, Any],
    *,
    importance: bool,
    source: GgmlType = GgmlType.F32,
    types: Mapping[str, GgmlType] | None = None,
) -> dict[str, TensorType]:
    """The type of every tensor of a file in `ftype`, by name.

    `tensors` are names and shapes with the row length last; `hyperparameters` the `<architecture>.…` keys.
    `importance`: whether there is an importance matrix. `source` is the float type of the file llama-quantize
    would read: what it does not quantize stays so. `types` decide for some tensors in the rules' stead.

    Raises UsageError for an unknown ftype, for `types` that name no tensor of the file or one that is never
    quantized, and where a type chosen needs an importance matrix and there is none.
    """
    if ftype not in DEFAULT_TYPES:
        raise UsageError(f"unknown ftype {ftype}; known: {', '.join(FTYPES)}")
    model = _model([name for name, _ in tensors], hyperparameters, importance)
    rules = _Rules(ftype, model, source, types or {})
    chosen = {name: rules.choose(name, shape) for name, shape in sorted(tensors, key=_quantizers_order)}
    if unknown := [name for name in types or {} if name not in chosen]:
        raise UsageError(f"types: the model has no tensor {', '.join(unknown[:3])}")
    for name, choice in chosen.items():
        if not importance and needs_importance(ftype, name, choice.kind):
            raise UsageError(f"{ftype} needs an importance matrix ({name} would be {choice.kind.name}); give one")
    return {name: chosen[name] for name, _ in tensors}


def fallbacks(chosen: Mapping[str, TensorType]) -> dict[str, str]:
    """The tensors whose rows do not divide into blocks: `{"blk.0.attn_q.weight": "q4_K -> q5_0"}`."""
    return {
        name: f"{_ggml_name(choice.wanted)} -> {_ggml_name(choice.kind)}"
        for name, choice in chosen.items()
        if choice.kind != choice.wanted
    }


def needs_importance(ftype: str, name: str, kind: GgmlType) -> bool:
    """Whether the tensor, rounded blindly to `kind`, would be worth nothing (llama.cpp's `tensor_requires_imatrix`)."""
    if name in INPUT_AND_OUTPUT:
        return ggml.needs_importance(kind)
    return kind.name in NEED_IMPORTANCE or (ftype == "Q2_K_S" and kind == GgmlType.Q2_K)


def file_type(ftype: str) -> int:
    """The number of `general.file_type`."""
    return int(LlamaFileType["ALL_F32" if ftype == "F32" else f"MOSTLY_{ftype}"])


def is_float32(name: str, shape: tuple[int, ...]) -> bool:
    """Whether llama.cpp's converter writes the tensor as F32 whatever the file's type."""
    return len(shape) < 2 or not name.endswith("weight") or bool(ALWAYS_FLOAT32.search(name))


@dataclass
class _Rules:
    """The choice for one tensor after another, in the quantizer's order: some rules count."""

    ftype: str
    model: Model
    source: GgmlType
    types: Mapping[str, GgmlType]
    counters: Counters = field(default_factory=Counters)

    def choose(self, name: str, shape: tuple[int, ...]) -> TensorType:
        default = GgmlType[DEFAULT_TYPES[self.ftype]]
        if is_float32(name, shape):
            kind = GgmlType.F32
        elif all(length == 1 for length in shape[:-1]):  # llama.cpp sees a vector
            kind = default if self.ftype in FLOAT_FTYPES else self.source
        else:
            wanted = self.types.get(name) or self._preferred(name, shape[-1], default)
            return TensorType(_fitting(wanted, shape[-1]), wanted)
        if self.types.get(name, kind) != kind:
            raise UsageError(f"types: llama.cpp does not quantize {name}; leave it out")
        return TensorType(kind, kind)

    def _preferred(self, name: str, n_cols: int, default: GgmlType) -> GgmlType:
        if self.ftype in FLOAT_FTYPES:
            return default
        divides = n_cols % block_size(default) == 0
        found = LAYER.match(name)
        layer = int(found[1]) if found else None
        preferred = preferred_type(
            self.ftype, default.name, name, divides=divides, layer=layer, model=self.model, counters=self.counters
        )
        return GgmlType[preferred]


def _model(names: Sequence[str], hyperparameters: Mapping[str, Any], importance: bool) -> Model:
    architecture = next((key.partition(".")[0] for key in hyperparameters if key.endswith(".block_count")), "")

    def number(key: str, default: int) -> int:
        value = hyperparameters.get(f"{architecture}.{key}", default)
        return int(value[0] if isinstance(value, list) else value)

    n_layers, n_heads = number("block_count", 0), number("attention.head_count", 0)
    n_kv_heads = number("attention.head_count_kv", n_heads)
    return Model(
        architecture=architecture,
        n_layers=n_layers,
        heads_per_kv_head=n_heads // n_kv_heads if n_kv_heads else 0,
        n_experts=number("expert_count", 0),
        is_70b=LAYERS_OF_70B.get(architecture) == n_layers and (architecture != "llama" or n_heads != n_kv_heads),
        n_attention_v=sum(category(name) == "attention_v" for name in names),
        tied="output.weight" not in names,
        importance=importance,
    )


def _quantizers_order(tensor: tuple[str, tuple[int, ...]]) -> tuple[int, str]:
    """llama.cpp's order of a file's tensors: those of no layer first, then by layer and name."""
    found = LAYER.match(tensor[0])
    return (int(found[1]) if found else -1, tensor[0])


def _fitting(wanted: GgmlType, n_cols: int) -> GgmlType:
    """`wanted`, or what llama.cpp takes for rows that do not divide into its blocks; F16 when nothing fits."""
    if n_cols % block_size(wanted) == 0:
        return wanted
    smaller = GgmlType[FALLBACKS.get(wanted.name, wanted.name)]
    return smaller if n_cols % block_size(smaller) == 0 else GgmlType.F16


def _ggml_name(kind: GgmlType) -> str:
    """As llama.cpp prints it: q4_K, q5_0, iq4_nl."""
    return kind.name.lower().replace("_k", "_K")
