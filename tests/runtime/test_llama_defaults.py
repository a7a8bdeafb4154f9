"""Keys left out mean what llama.cpp takes for them (`get_key(..., false)` of its loader)."""

import math
from typing import Any

import pytest

from edgeft.runtime.llama_defaults import with_defaults

HEADS = {"block_count": 6, "attention.head_count": 8, "embedding_length": 64, "context_length": 512}
GEMMA3 = {**HEADS, "attention.sliding_window": 16}
SAME: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "heads": ("llama", HEADS, HEADS | {"attention.head_count_kv": 8, "attention.key_length": 8}),
    "width of a head": ("llama", HEADS, HEADS | {"attention.value_length": 8, "rope.dimension_count": 8}),
    "base of the rotation": ("llama", HEADS, HEADS | {"rope.freq_base": 10000.0}),
    "no scaling": ("llama", HEADS, HEADS | {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}),
    "linear by one": ("llama", HEADS, HEADS | {"rope.scaling.type": b"linear", "rope.scaling.factor": 1.0}),
    "older name of the factor": ("llama", HEADS | {"rope.scale_linear": 4.0}, HEADS | {"rope.scaling.factor": 4.0}),
    "yarn from the whole context": (
        "llama", HEADS | {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0},
        HEADS | {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.original_context_length": 512},
    ),
    "no experts": ("llama", HEADS, HEADS | {"expert_count": 0, "expert_used_count": 0}),
    "one number a layer": ("llama", HEADS, HEADS | {"attention.head_count_kv": [8] * 6}),
    "size of the vocabulary": ("llama", HEADS, HEADS | {"vocab_size": 100}),
    "base of sliding layers": ("gemma3", GEMMA3, GEMMA3 | {"rope.freq_base_swa": 10000.0}),
    "period of Gemma 3": ("gemma3", GEMMA3, GEMMA3 | {"attention.sliding_window_pattern": [True] * 5 + [False]}),
    "period as a number": ("gemma3", GEMMA3, GEMMA3 | {"attention.sliding_window_pattern": 6}),
    "no cap of logits": ("gemma3", GEMMA3, GEMMA3 | {"final_logit_softcapping": 0.0}),
    "no window": ("gemma3", HEADS, HEADS | {"attention.sliding_window": 0, "rope.freq_base_swa": 5.0}),
    "Gemma 2": (
        "gemma2", HEADS | {"rope.freq_base": 7.0},
        HEADS | {"rope.freq_base": 7.0, "rope.freq_base_swa": 7.0, "attention.sliding_window": 4096,
                 "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "Phi's window is off": ("phi3", HEADS, HEADS | {"attention.sliding_window": 2047}),
    "Granite": (
        "granite", HEADS,
        HEADS | {"residual_scale": 1.0, "embedding_scale": 0.0, "attention.scale": 1 / math.sqrt(8),
                 "rope.scaling.finetuned": True},
    ),
    "ModernBERT": (
        "modern-bert", GEMMA3, GEMMA3 | {"hidden_activation": "gelu", "rope.freq_base_swa": 10000.0},
    ),
    "experts' width": (
        "qwen3moe", HEADS | {"expert_used_count": 2, "feed_forward_length": 96},
        HEADS | {"expert_used_count": 2, "feed_forward_length": 96, "expert_feed_forward_length": 48},
    ),
}  # fmt: skip
OTHER: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "another base": ("llama", HEADS, HEADS | {"rope.freq_base": 500000.0}),
    "another base of sliding layers": ("gemma3", GEMMA3, GEMMA3 | {"rope.freq_base_swa": 500000.0}),
    "fewer heads of keys": ("llama", HEADS, HEADS | {"attention.head_count_kv": 2}),
    "heads that differ by layer": ("llama", HEADS, HEADS | {"attention.head_count_kv": [8] * 5 + [4]}),
    "scaled": ("llama", HEADS, HEADS | {"rope.scaling.factor": 4.0}),
    "Granite without rotation": ("granite", HEADS, HEADS | {"rope.scaling.finetuned": False}),
    "another period": ("gemma3", GEMMA3, GEMMA3 | {"attention.sliding_window_pattern": 3}),
}


@pytest.mark.parametrize("name", SAME)
def test_a_key_left_out_is_its_default(name: str) -> None:
    architecture, one, other = SAME[name]
    assert with_defaults(architecture, one, 100) == with_defaults(architecture, other, 100)


@pytest.mark.parametrize("name", OTHER)
def test_another_value_is_not(name: str) -> None:
    architecture, one, other = OTHER[name]
    assert with_defaults(architecture, one, 100) != with_defaults(architecture, other, 100)
