"""Rotary position embeddings: what config.json says of them, and what llama.cpp wants to be told."""

import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from edgeft.errors import ModelError
from edgeft.export.gguf.architectures.base import Config, Metadata, TensorRule

SCALINGS = ("default", "linear", "yarn")
"""What llama.cpp computes from keys alone, for every architecture that rotates."""

BETAS = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
"""YaRN's settings that llama.cpp has in its code and reads from no key."""


def rope_parameters(config: Config, layers: str = "full_attention") -> dict[str, Any]:
    """`rope_theta`, `rope_type`, `partial_rotary_factor` and the scaling's fields, wherever this version of
    transformers put them; `layers` chooses between kinds of layers where the model has several."""
    rope: dict[str, Any] = {"rope_theta": config.get("rope_theta", 10000.0)}
    rope["partial_rotary_factor"] = config.get("partial_rotary_factor", 1.0)
    rope |= config.get("rope_scaling") or {}
    new: dict[str, Any] = config.get("rope_parameters") or {}
    rope |= new.get(layers, new)
    rope.setdefault("rope_type", rope.get("type", "default"))
    return rope


def rope_metadata(
    config: Config, head_dim: int, scalings: Collection[str] = SCALINGS, *, partial: bool = False
) -> Metadata:
    """The `rope.…` keys. Raises ModelError for a scaling that is not among `scalings`, and for heads that are
    rotated in part unless the graph can (`partial`)."""
    rope = rope_parameters(config)
    if rope["partial_rotary_factor"] != 1.0 and not partial:
        raise ModelError(
            f"config.json: partial_rotary_factor {rope['partial_rotary_factor']}: llama.cpp's graph for "
            f"{config['model_type']} rotates whole heads"
        )
    if rope["rope_type"] not in scalings:
        raise ModelError(
            f"config.json: rope_type {rope['rope_type']!r} is not supported for this model_type; "
            f"only {', '.join(scalings)}"
        )
    metadata: Metadata = {
        "rope.dimension_count": int(head_dim * rope["partial_rotary_factor"]),
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if rope["rope_type"] in ("linear", "yarn"):
        metadata["rope.scaling.type"] = rope["rope_type"]
        metadata["rope.scaling.factor"] = float(rope["factor"])
    if rope["rope_type"] == "yarn":
        metadata |= _yarn(rope, config)
    if rope["rope_type"] == "longrope":
        metadata |= _longrope(rope, config)
    return metadata


def llama3_factors(config: Config, head_dim: int) -> list[TensorRule]:
    """The tensor of Llama 3's scaling, which divides each rotary frequency; none where it is not used.

    Long wavelengths are slowed by `factor`, short ones left, those between blended
    (`_compute_llama3_parameters` in transformers' `modeling_rope_utils.py`).
    """
    rope = rope_parameters(config)
    if rope["rope_type"] != "llama3":
        return []
    wavelengths = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    context = rope["original_max_position_embeddings"]
    blend = (context / wavelengths - low) / (high - low)
    between = 1 / ((1 - blend) / factor + blend)
    factors = np.where(wavelengths > context / low, factor, between)
    factors = np.where(wavelengths < context / high, 1.0, factors).astype(np.float32)
    return [TensorRule("rope_freqs.weight", (), factors.shape, lambda: factors)]


def longrope_factors(config: Config, head_dim: int) -> list[TensorRule]:
    """The two tensors of LongRoPE: llama.cpp takes `long` for a context beyond the original one."""
    rope = rope_parameters(config)
    if rope["rope_type"] != "longrope":
        return []
    n_rotated = int(head_dim * rope["partial_rotary_factor"])
    return [_factors(rope, length, n_rotated) for length in ("long", "short")]


def interleaved(n_heads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Reorder the output rows of a q or k projection (rows, …) for the graphs that rotate neighbours.

    transformers rotates row i of a head with row i + head_dim/2; these graphs rotate rows 2i and 2i + 1.
    """

    def change(tensor: np.ndarray) -> np.ndarray:
        halves = tensor.reshape(n_heads, 2, tensor.shape[0] // n_heads // 2, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape)

    return change


def _yarn(rope: dict[str, Any], config: Config) -> Metadata:
    """llama.cpp scales attention by 0.1 ln(factor) + 1 of its own, and by `attn_factor` besides."""
    for key, value in BETAS.items():
        if rope.get(key, value) != value:
            raise ModelError(f"config.json: rope_parameters.{key} {rope[key]!r}: llama.cpp has only {value!r}")
    original = rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
    metadata: Metadata = {"rope.scaling.original_context_length": original}

    def mscale(weight: float) -> float:
        return max(1.0, 0.1 * weight * math.log(rope["factor"]) + 1.0)

    wanted = rope.get("attention_factor")
    if wanted is None and rope.get("mscale") and rope.get("mscale_all_dim"):
        wanted = mscale(rope["mscale"]) / mscale(rope["mscale_all_dim"])
    if wanted is not None:
        metadata["rope.scaling.attn_factor"] = wanted / mscale(1.0)
    return metadata


def _longrope(rope: dict[str, Any], config: Config) -> Metadata:
    """`_compute_longrope_parameters` in transformers' `modeling_rope_utils.py`."""
    original = _original_context(rope, config)
    stretch = rope.get("factor") or config["max_position_embeddings"] / original
    attention = rope.get("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    return {
        "rope.scaling.type": "longrope",
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": float(attention),
    }


def _original_context(rope: dict[str, Any], config: Config) -> int:
    """Tokens the model was first trained on; a key of its own in older files."""
    original = rope.get("original_max_position_embeddings") or config["original_max_position_embeddings"]
    return int(original)


def _factors(rope: dict[str, Any], length: str, n_rotated: int) -> TensorRule:
    factors = np.asarray(rope[f"{length}_factor"], np.float32)
    if factors.shape != (n_rotated // 2,):
        raise ModelError(
            f"config.json: rope_parameters.{length}_factor has {len(factors)} numbers; "
            f"the {n_rotated} rotated dimensions of a head need {n_rotated // 2}"
        )
    return TensorRule(f"rope_factors_{length}.weight", (), factors.shape, lambda: factors)
