"""The type llama.cpp prefers for a matrix in a file type: `llama_tensor_get_type_impl` of `src/llama-quant.cpp`.

One function per kind of matrix. Types and file types are llama.cpp's names; whether rows divide into the blocks
of the type is not looked at here.
"""

from dataclasses import dataclass

LOW_BIT = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M")
Q4_TO_IQ3 = (
    "Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ3_XS", "IQ3_XXS", "IQ3_S", "IQ3_M", "IQ4_NL", "IQ4_XS",
)  # fmt: skip

# The first part of a name found decides, in this order.
CATEGORIES = (
    ("attn_qkv.weight", "attention_v"),
    ("attn_kv_b.weight", "attention_v"),
    ("attn_v.weight", "attention_v"),
    ("attn_k.weight", "attention_k"),
    ("attn_q.weight", "attention_q"),
    ("attn_output.weight", "attention_output"),
    ("ffn_up", "ffn_up"),
    ("ffn_gate", "ffn_gate"),
    ("ffn_down", "ffn_down"),
)
EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
EMBEDDING_TYPES = {
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"), "Q2_K"),
    **dict.fromkeys(("IQ2_S", "IQ2_M", "IQ3_XXS"), "IQ3_S"),
    **dict.fromkeys(("TQ1_0", "TQ2_0"), "Q4_K"),
}


@dataclass(frozen=True)
class Model:
    """What the rules need to know of a model."""

    architecture: str
    n_layers: int
    heads_per_kv_head: int
    """Query heads that share a key head; 0 without attention heads."""
    n_experts: int
    is_70b: bool
    """Whether llama.cpp takes it for a 70B model."""
    n_attention_v: int
    """Matrices of the category `attention_v`."""
    tied: bool
    """Whether the embedding is the output matrix as well."""
    importance: bool
    """Whether there is an importance matrix."""


@dataclass
class Counters:
    """How many matrices of a category had their type chosen; stands for the layer in some rules."""

    attention_v: int = 0
    ffn_down: int = 0
    ffn_gate: int = 0
    ffn_up: int = 0


def category(name: str) -> str:
    """What a tensor is to the rules, by its name."""
    if name == "output.weight":
        return "output"
    if name in EMBEDDINGS:
        return "embedding"
    return next((kind for part, kind in CATEGORIES if part in name), "other")


def preferred_type(
    ftype: str, default: str, name: str, *, divides: bool, layer: int | None, model: Model, counters: Counters
) -> str:
    """The type of the matrix `name` in a file of `ftype`, whose usual type is `default`; counts it in `counters`.

    `divides`: whether its rows divide into the blocks of `default`; `layer`: the one its name tells, if any.
    """
    kind = category(name)
    if kind == "output" or (kind == "embedding" and model.tied):
        return _output(ftype, default, divides, model)
    if kind == "embedding":
        return EMBEDDING_TYPES.get(ftype, default)
    if ftype in LOW_BIT:
        return _low_bit(ftype, default, kind, model, counters)
    if kind == "attention_v":
        counters.attention_v += 1
        return _attention_v(ftype, default, counters.attention_v - 1, model)
    if kind in ("attention_k", "attention_q"):
        if kind == "attention_k" and model.n_experts == 8:
            return "Q8_0"
        return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(ftype, default)
    if kind == "attention_output":
        return _attention_output(ftype, default, model)
    if kind in ("ffn_down", "ffn_gate", "ffn_up"):
        count = getattr(counters, kind)
        setattr(counters, kind, count + 1)
        # Experts are not stored in the order of layers.
        index = layer if model.n_experts > 1 and layer is not None else count
        return _ffn_down(ftype, default, index, model) if kind == "ffn_down" else _ffn(ftype, default, index, model)
    return default


def _output(ftype: str, default: str, divides: bool, model: Model) -> str:
    if model.architecture == "falcon" or not divides:
        return "Q8_0"
    if ftype in LOW_BIT or ftype == "IQ3_XXS":
        return "Q5_K"
    return default if default == "Q8_0" else "Q6_K"


def _low_bit(ftype: str, default: str, kind: str, model: Model, counters: Counters) -> str:
    richer = "IQ3_S" if ftype in ("IQ2_S", "IQ2_M") else "Q2_K"
    if kind == "attention_v":
        counters.attention_v += 1
        return "Q4_K" if model.heads_per_kv_head >= 4 or model.n_experts >= 4 else richer
    if kind == "attention_k" and model.n_experts == 8:
        return "Q4_K"
    if kind == "ffn_down":
        counters.ffn_down += 1
        return richer if counters.ffn_down - 1 < model.n_layers // 8 else default
    if kind == "attention_output":
        if model.n_experts == 8:
            return "Q5_K"
        return {"IQ1_S": "IQ2_XXS", "IQ1_M": "IQ2_XXS", "IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S"}.get(ftype, default)
    return default


def _attention_v(ftype: str, default: str, index: int, model: Model) -> str:
    shared = model.heads_per_kv_head >= 4
    chosen = default
    if ftype == "Q2_K":
        chosen = "Q4_K" if shared else "Q3_K"
    elif ftype in ("Q2_K_S", "IQ3_XS", "IQ3_S") and shared:
        chosen = "Q4_K"
    elif ftype == "IQ3_XXS":
        chosen = "Q4_K" if shared else "IQ3_XXS" if model.importance else "IQ3_S"
    elif ftype == "IQ3_M":
        chosen = "Q4_K"
    elif ftype == "Q3_K_M":
        chosen = "Q5_K" if index < 2 else "Q4_K"
    elif ftype == "Q3_K_L" or (ftype in ("IQ4_NL", "IQ4_XS") and shared) or (ftype == "Q4_K_S" and index < 4):
        chosen = "Q5_K"
    elif ftype in ("Q4_K_M", "Q5_K_M") and _more_bits(index, model.n_attention_v):
        chosen = "Q6_K"
    if model.is_70b and chosen in ("Q3_K", "Q4_K"):
        chosen = "Q5_K"
    return "Q8_0" if model.n_experts == 8 else chosen


def _attention_output(ftype: str, default: str, model: Model) -> str:
    if model.architecture == "falcon":
        return "Q4_K" if ftype == "Q3_K_L" else default
    if model.n_experts == 8:
        return "Q5_K" if ftype in Q4_TO_IQ3 else default
    types = {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}
    return types.get(ftype, default)


def _ffn_down(ftype: str, default: str, index: int, model: Model) -> str:
    falcon, more_bits = model.architecture == "falcon", _more_bits(index, model.n_layers)
    first_eighth, first_sixteenth = index < model.n_layers // 8, index < model.n_layers // 16
    if ftype == "Q2_K":
        return "Q3_K"
    if ftype == "Q2_K_S" and first_eighth:
        return "Q4_K"
    if ftype == "IQ3_XXS" and not model.importance:
        return "Q4_K" if first_eighth else "Q3_K"
    if ftype == "Q3_K_M":
        return "Q5_K" if first_sixteenth else "Q4_K" if not falcon or more_bits else "Q3_K"
    if ftype == "IQ3_M" and (first_eighth or (model.n_experts == 8 and more_bits)):
        return "Q4_K"
    if ftype == "Q3_K_L":
        return "Q4_K" if falcon else "Q5_K"
    if ftype == "Q4_K_M" and falcon:
        return "Q6_K" if first_sixteenth else "Q5_K" if more_bits else "Q4_K"
    if ftype in ("Q4_K_M", "Q5_K_M"):
        return "Q6_K" if more_bits else default
    if ftype in ("IQ4_NL", "IQ4_XS") and first_eighth and not model.importance:
        return "Q5_K"
    if ftype == "Q4_K_S" and first_eighth and not falcon:
        return "Q5_K"
    if ftype in ("Q4_0", "Q5_0") and first_eighth and model.importance:
        return {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}[ftype]
    return default


def _ffn(ftype: str, default: str, index: int, model: Model) -> str:
    middle = model.n_layers // 8 <= index < 7 * model.n_layers // 8
    return "IQ3_XXS" if ftype == "IQ3_XS" and middle else default


def _more_bits(index: int, n_layers: int) -> bool:
    """The first and the last eighth, and every third layer between."""
    return index < n_layers // 8 or index >= 7 * n_layers // 8 or (index - n_layers // 8) % 3 == 2
