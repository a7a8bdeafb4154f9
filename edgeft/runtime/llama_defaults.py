"""What llama.cpp takes where a file leaves out a key of its architecture, so that two files that load alike compare
alike (`get_key(..., false)` in `src/llama-model.cpp` and `src/models/*.cpp`)."""

import math
from collections.abc import Callable, Mapping
from typing import Any

Keys = dict[str, Any]

UNREAD = ("rope.scaling.finetuned", "tensor_data_layout", "rope.scale_linear")
"""What changes nothing: noted by converters, or read into another key below. In Granite the first is a switch."""
ZERO_IS_NONE = (
    "expert_count", "expert_used_count", "expert_group_count", "expert_group_used_count", "nextn_predict_layers",
    "pooling_type", "final_logit_softcapping", "attention.sliding_window", "rope.scaling.alpha",
)  # fmt: skip
"""Keys by which a zero says that there is none of it."""
BY_LAYER = ("feed_forward_length", "attention.head_count", "attention.head_count_kv", "expert_feed_forward_length")
"""Keys that hold one number, or one a layer."""


def with_defaults(architecture: str, keys: Mapping[str, Any], n_tokens: int) -> Keys:
    """`keys` (without `<architecture>.`) with what llama.cpp takes for those left out, in one spelling: what a zero or
    a word like `none` switches off is not there. `n_tokens`: entries of the vocabulary."""
    full = {key: _one(value) if key in BY_LAYER else value for key, value in keys.items()}
    full.setdefault("vocab_size", n_tokens)
    if "attention.head_count" in full and "embedding_length" in full:
        _fill_heads(full)
    if architecture in ADDED:
        ADDED[architecture](full)
    dropped = {key for key in ZERO_IS_NONE if key in full and not full[key]}
    dropped |= {key for key in UNREAD if key in full and not (architecture == "granite" and key == UNREAD[0])}
    return {key: value for key, value in full.items() if key not in dropped}


def _one(value: Any) -> Any:
    """A number for a list of equal ones."""
    if isinstance(value, int | float | str | bytes) or value is None:
        return value
    different = set(value)
    return different.pop() if len(different) == 1 else value


def _fill_heads(full: Keys) -> None:
    """Heads and their rotation."""
    heads = full["attention.head_count"]
    if not isinstance(heads, int) or not heads:
        return
    full.setdefault("attention.head_count_kv", heads)
    full.setdefault("attention.key_length", full["embedding_length"] // heads)
    full.setdefault("attention.value_length", full["embedding_length"] // heads)
    full.setdefault("rope.dimension_count", full["attention.key_length"])
    full.setdefault("rope.freq_base", 10000.0)
    full.setdefault("rope.scaling.attn_factor", 1.0)
    kind = full.pop("rope.scaling.type", "linear")
    factor = full.pop("rope.scaling.factor", full.get("rope.scale_linear", 0.0)) or 1.0
    original = full.pop("rope.scaling.original_context_length", None) or full.get("context_length")
    if _text(kind) == "none" or (_text(kind) == "linear" and factor == 1.0):
        return
    full |= {"rope.scaling.type": _text(kind), "rope.scaling.factor": factor}
    if _text(kind) != "linear":
        full["rope.scaling.original_context_length"] = original


def _gemma2(full: Keys) -> None:
    full.setdefault("attention.sliding_window", 4096)
    full.setdefault("attn_logit_softcapping", 50.0)
    full.setdefault("final_logit_softcapping", 30.0)
    full.setdefault("rope.freq_base_swa", full.get("rope.freq_base", 10000.0))
    _fill_pattern(full, 2)


def _gemma3(full: Keys) -> None:
    if full.get("attention.sliding_window"):
        full.setdefault("rope.freq_base_swa", 10000.0)
        _fill_pattern(full, 6)
    else:
        full.pop("rope.freq_base_swa", None)
        full.pop("attention.sliding_window_pattern", None)


def _modern_bert(full: Keys) -> None:
    full.setdefault("hidden_activation", "gelu")
    if "classifier.output_labels" in full:
        full.setdefault("classifier.pooling_type", 1)
    if full.get("attention.sliding_window"):
        full.setdefault("rope.freq_base_swa", 10000.0)
        _fill_pattern(full, 3, dense_first=True)


def _phi3(full: Keys) -> None:
    """llama.cpp has switched the window off."""
    full.pop("attention.sliding_window", None)
    full.pop("attention.sliding_window_pattern", None)


def _granite(full: Keys) -> None:
    full.setdefault("rope.scaling.finetuned", True)
    for key in ("embedding_scale", "residual_scale"):
        full[key] = full.get(key) or 1.0
    if isinstance(full.get("attention.key_length"), int):
        full["attention.scale"] = full.get("attention.scale") or 1 / math.sqrt(full["attention.key_length"])


def _qwen3_moe(full: Keys) -> None:
    used = full.get("expert_used_count")
    if used and "feed_forward_length" in full and not full.get("expert_feed_forward_length"):
        full["expert_feed_forward_length"] = full["feed_forward_length"] // used


ADDED: dict[str, Callable[[Keys], None]] = {
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "modern-bert": _modern_bert,
    "phi3": _phi3,
    "granite": _granite,
    "qwen3moe": _qwen3_moe,
}
"""What single architectures add."""


def _fill_pattern(full: Keys, every: int, *, dense_first: bool = False) -> None:
    """Which layers slide: one of `every` does not, the first of them (`dense_first`) or the last; a number stands for
    such a period. The window's length alone is left where that is so."""
    n_layers = full.get("block_count", 0)

    def slides(period: int) -> list[bool]:
        if period == 0:
            return [True] * n_layers
        return [layer % period != (0 if dense_first else period - 1) for layer in range(n_layers)]

    given = full.pop("attention.sliding_window_pattern", every)
    pattern = slides(given) if isinstance(given, int) else [bool(flag) for flag in given]
    if pattern != slides(every):
        full["attention.sliding_window_pattern"] = pattern


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
