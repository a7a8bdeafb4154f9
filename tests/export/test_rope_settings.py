"""Rotary settings of config.json mean what transformers makes of them, in GGUF and ONNX alike."""

import copy
from typing import Any

import numpy as np
import pytest
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from edgeft.errors import ModelError
from edgeft.export.gguf.architectures import gemma3_text, llama, modernbert, phi3
from edgeft.export.gguf.architectures._rope import rope_metadata, rope_parameters
from edgeft.export.onnx.rope import rope_of

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "vocab_size": 32,
    "num_key_value_heads": 4, "head_dim": 16, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FACTORS = {"short_factor": [1.0 + i for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}
READ: dict[str, dict[str, Any]] = {
    "older keys": {"rope_theta": 777.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "null scaling": {"rope_theta": 777.0, "rope_scaling": None},
    "base in both places": {"rope_theta": 5.0, "rope_parameters": {"rope_type": "default", "rope_theta": 9000.0}},
    "scaling in both places": {
        "rope_theta": 500.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "linear", "factor": 8.0, "rope_theta": 9000.0},
    },
    "yarn, context at the top": {
        "original_max_position_embeddings": 64, "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
    },
    "yarn, context in both places": {
        "original_max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4,
                            "original_max_position_embeddings": 128},
    },
    "yarn, no context": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "yarn, null betas": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": None, "beta_slow": None}},
    "yarn, scale of attention": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.25}},
    "yarn, both mscales": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.0}},
    "llama3, context at the top": {"original_max_position_embeddings": 64, "rope_scaling": LLAMA3},
    "llama3, no context": {"rope_scaling": LLAMA3},
    "a part of a head, which Llama ignores": {"partial_rotary_factor": 0.5},
    "a part of a head, inside": {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
}  # fmt: skip


def theirs(config: dict[str, Any]) -> tuple[np.ndarray, float]:
    """transformers' frequencies and scale of cosines and sines."""
    read = transformers.LlamaConfig(**copy.deepcopy(config))
    kind = read.rope_parameters["rope_type"]
    if kind == "default":
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        frequencies, scale = LlamaRotaryEmbedding.compute_default_rope_parameters(read)
    else:
        frequencies, scale = ROPE_INIT_FUNCTIONS[kind](read, "cpu")
    return frequencies.numpy(), scale


@pytest.mark.parametrize("name", READ)
def test_settings_are_read_as_transformers_reads_them(name: str) -> None:
    config = {**SIZES, "model_type": "llama", **READ[name]}
    frequencies, scale = theirs(config)
    ours = rope_of(config, rope_parameters(config), config["head_dim"])
    np.testing.assert_allclose(ours.frequencies, frequencies, rtol=1e-6)
    assert ours.amplitude == pytest.approx(scale)
    keys = rope_metadata(config, config["head_dim"], ("default", "linear", "yarn", "llama3"))
    assert keys["rope.dimension_count"] == 2 * len(frequencies)
    if "rope.scaling.original_context_length" in keys:
        read = transformers.LlamaConfig(**copy.deepcopy(config))
        read.standardize_rope_params()  # as its formulas do
        original = read.rope_parameters["original_max_position_embeddings"]
        assert keys["rope.scaling.original_context_length"] == original


@pytest.mark.parametrize("kind", ["su", "yarn", "longrope"])
def test_phi_calls_longrope_otherwise(kind: str) -> None:
    config = {**SIZES, "model_type": "phi3", "original_max_position_embeddings": 64, "partial_rotary_factor": 1.0}
    config = {**phi3.ARCHITECTURE.defaults, **config, "rope_scaling": {"type": kind, **FACTORS}}
    rope = rope_parameters(config)
    assert (rope["rope_type"], rope["original_max_position_embeddings"]) == ("longrope", 64)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "yarn without factor": ({"rope_scaling": {"rope_type": "yarn"}}, "'yarn' without factor"),
    "linear without factor": ({"rope_scaling": {"type": "linear"}}, "'linear' without factor"),
    "linear, null": ({"rope_scaling": {"type": "linear", "factor": None}}, "'linear' with factor None"),
    "llama3 without its factors": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "without low_freq_factor, high_freq_factor",
    ),
    "longrope without factors": ({"rope_scaling": {"rope_type": "longrope"}}, "without short_factor, long_factor"),
    "a part of a head, scaled": (
        {"partial_rotary_factor": 0.5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rotates whole heads",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_transformers_cannot_load_is_refused_in_words(name: str) -> None:
    settings, said = REFUSED[name]
    config = {**llama.ARCHITECTURE.defaults, **SIZES, "model_type": "llama", **settings}
    with pytest.raises(ModelError, match=said):
        llama.hyperparameters(config)


LOCAL = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
PLAIN = {"rope_type": "default", "rope_theta": 1e6}


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        (gemma3_text, {"rope_parameters": {"sliding_attention": LOCAL, "full_attention": PLAIN}}),
        (
            gemma3_text,
            {"rope_parameters": {"sliding_attention": PLAIN, "full_attention": LOCAL | {"rope_type": "yarn"}}},
        ),
        (modernbert, {"rope_parameters": {"sliding_attention": LOCAL, "full_attention": PLAIN}}),
        (modernbert, {"rope_parameters": {"sliding_attention": PLAIN, "full_attention": LOCAL}}),
    ],
)
def test_scalings_that_llama_cpp_has_not_in_these_layers(module: Any, settings: dict[str, Any]) -> None:
    kind = "gemma3_text" if module is gemma3_text else "modernbert"
    config = {**module.ARCHITECTURE.defaults, **SIZES, "model_type": kind, "sliding_window": 16, **settings}
    config |= {"query_pre_attn_scalar": 16, "global_attn_every_n_layers": 3}
    with pytest.raises(ModelError, match=r"has no scaling in these layers|in sliding layers too"):
        module.ARCHITECTURE.hyperparameters(config)


def test_older_gemma_3_scales_the_other_layers_alone() -> None:
    config = {**gemma3_text.ARCHITECTURE.defaults, **SIZES, "model_type": "gemma3_text", "sliding_window": 16}
    config |= {"query_pre_attn_scalar": 16, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    keys = gemma3_text.hyperparameters(config)
    assert (keys["rope.scaling.factor"], keys["rope.freq_base_swa"]) == (8.0, 10000.0)
