"""config.json for the metadata of a GGUF file.

What comes out is proven by the architecture's own module: from this config.json it must give the metadata of the
file again, key by key.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeft.errors import ModelError
from edgeft.export.gguf.architectures import Architecture, architecture_of
from edgeft.export.gguf.read import GgufFile
from edgeft.runtime.gguf_format import Header

CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""llama.cpp's architecture (here also the `model_type`) -> the class in transformers."""
SIZES = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
}
TOKENS = {"bos": "bos", "eos": "eos", "pad": "padding"}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3_CONTEXT = 8192
"""Llama 3's scaling as every release has it; a file holds only the factors that come of it."""
DERIVED = {"rope.scaling.finetuned", "rope.dimension_count", "attention.key_length", "attention.value_length"}
"""Keys that files of other tools leave out or add, with no setting of their own in config.json."""


def config_of(file: GgufFile, dtype: str) -> tuple[dict[str, Any], Architecture]:
    """The content of config.json with weights of `dtype`, and the architecture that writes it.

    Raises ModelError, naming the architecture or the key, when config.json could not say what the file says.
    """
    header = file.header
    if header.architecture not in CLASSES:
        raise ModelError(
            f"{header.path}: files of the architecture {header.architecture!r} cannot be imported; "
            f"supported: {', '.join(sorted(CLASSES))}"
        )
    config = _config(header, dtype)
    if "rope_freqs.weight" in header.tensors:
        factor = float(file.read("rope_freqs.weight").max())
        config["rope_parameters"] |= LLAMA3 | {
            "factor": factor,
            "original_max_position_embeddings": LLAMA3_CONTEXT,
        }
    architecture = architecture_of(config, header.path)
    _prove(file, {**architecture.defaults, **config}, architecture)
    return config, architecture


def _config(header: Header, dtype: str) -> dict[str, Any]:
    name = header.architecture

    def get(key: str, default: Any = None) -> Any:
        found = header.get(f"{name}.{key}", default)
        if not isinstance(found, int | float | str | type(None)):
            raise ModelError(f"{header.path}: {name}.{key} differs by layer, which config.json cannot say")
        return _shortest(found)

    config = {theirs: get(ours) for theirs, ours in SIZES.items()}
    heads = config["num_attention_heads"]
    ids = {token: header.get(f"tokenizer.ggml.{key}_token_id") for token, key in TOKENS.items()}
    return {
        "architectures": [CLASSES[name]],
        "model_type": name,
        "dtype": dtype,
        **config,
        "num_key_value_heads": get("attention.head_count_kv", heads),
        "head_dim": get("attention.key_length", config["hidden_size"] // heads),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(get),
        "hidden_act": "silu",
        "attention_bias": name == "llama" and "blk.0.attn_q.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in header.tensors,
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "vocab_size": len(header.get("tokenizer.ggml.tokens")),
        **{f"{token}_token_id": found for token, found in ids.items() if found is not None},
    }


def _rope(get: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": get("rope.freq_base", 10000.0)}
    scaling, factor = get("rope.scaling.type"), get("rope.scaling.factor")
    if scaling in ("linear", "yarn") and factor:
        rope |= {"rope_type": scaling, "factor": factor}
    original = get("rope.scaling.original_context_length")
    if scaling == "yarn" and original:
        rope["original_max_position_embeddings"] = original
    return rope


def _shortest(value: Any) -> Any:
    """A float32 in the fewest digits that mean it: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _prove(file: GgufFile, config: dict[str, Any], architecture: Architecture) -> None:
    """Raise ModelError unless the architecture's module gives the file's keys and made tensors for `config`."""
    header, prefix = file.header, f"{file.header.architecture}."
    ours: Mapping[str, Any] = architecture.hyperparameters(config)
    theirs = {key.removeprefix(prefix): value.value for key, value in header.values.items() if key.startswith(prefix)}
    for key in sorted({*ours, *theirs} - DERIVED):
        if key in ours and key not in theirs and key in ("vocab_size", "attention.head_count_kv"):
            continue
        if _shortest(ours.get(key)) != _shortest(theirs.get(key)):
            raise ModelError(
                f"{header.path}: {prefix}{key} is {theirs.get(key)}, which config.json cannot say (it would become "
                f"{ours.get(key)}); this model cannot be imported"
            )
    for rule in architecture.tensors(config):
        if not rule.sources and not np.array_equal(rule.change(), file.read(rule.name)):
            raise ModelError(f"{header.path}: {rule.name} holds other factors than Llama 3's; it cannot be imported")
