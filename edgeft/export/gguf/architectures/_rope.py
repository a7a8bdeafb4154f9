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


PARTIAL = ("phi3",)
"""Models whose code rotates a part of a head (`partial_rotary_factor`); that of the others ignores the setting."""
OLDER_NAMES = {"su": "longrope"}
PHI3_NAMES = {"su": "longrope", "yarn": "longrope"}
"""What older files call a scaling; early Phi-3 files called LongRoPE so."""
REQUIRED = {
    "linear": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}
"""Settings of a scaling that have no default."""
OF_A_CONTEXT = ("yarn", "llama3", "longrope")
"""Scalings that start from the context the model was first trained on."""


def rope_parameters(config: Config, layers: str = "full_attention", theta_key: str = "rope_theta") -> dict[str, Any]:
    """`rope_theta`, `rope_type`, `partial_rotary_factor`, `factor` and the scaling's other fields, as transformers 5
    reads them (`RotaryEmbeddingConfigMixin` in its `modeling_rope_utils.py`), for GGUF and ONNX alike.

    `layers` chooses between kinds of layers where the model has several, and `theta_key` is where older files have
    the base of this kind; under another key than the usual one a scaling of older files does not concern it. Raises
    ModelError for a scaling without a setting it needs.
    """
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    nested = any(isinstance(value, dict) for value in given.values())
    if nested:
        given = given.get(layers) or {}
    elif theta_key != "rope_theta":
        given = {}
    rope: dict[str, Any] = {key: value for key, value in given.items() if key != "type"}
    names = PHI3_NAMES if config.get("model_type") in PARTIAL else OLDER_NAMES
    kind = given.get("rope_type") or given.get("type") or "default"
    kind = rope["rope_type"] = names.get(kind, kind)
    if rope.get("rope_theta") is None:
        rope["rope_theta"] = config.get(theta_key, 10000.0)
    rope["partial_rotary_factor"] = _partial_factor(rope, config, kind)
    if missing := [key for key in REQUIRED.get(kind, ()) if key not in rope]:
        raise ModelError(
            f"config.json: rope_type {kind!r} without {', '.join(missing)}, which transformers does not load either; "
            "add what the model was trained with"
        )
    if kind in OF_A_CONTEXT:
        _settle_context(rope, config, nested=nested)
    if kind in ("linear", "yarn", "llama3") and not isinstance(rope["factor"], int | float):
        raise ModelError(f"config.json: rope_type {kind!r} with factor {rope['factor']!r}; give a number")
    return rope


def _partial_factor(rope: dict[str, Any], config: Config, kind: str) -> float:
    given = rope.get("partial_rotary_factor")
    factor = float(config.get("partial_rotary_factor") or 1.0) if given is None else float(given)
    if factor == 1.0 or config.get("model_type") in PARTIAL:
        return factor
    if kind == "default":
        return 1.0
    raise ModelError(
        f"config.json: partial_rotary_factor {factor} with rope_type {kind!r}: the {config.get('model_type')} of "
        "transformers rotates whole heads; remove one"
    )


def _settle_context(rope: dict[str, Any], config: Config, *, nested: bool) -> None:
    """The original context, which beside one scaling for all layers stands at the top level first; and a `factor` that
    is null: the ratio of the contexts."""
    longest = config["max_position_embeddings"]
    given = rope.get("original_max_position_embeddings")
    if not nested:
        given = config.get("original_max_position_embeddings") or given
    rope["original_max_position_embeddings"] = given or longest
    if rope["rope_type"] == "yarn" and rope["factor"] is None:
        rope["factor"] = longest / rope["original_max_position_embeddings"]


def rope_metadata(config: Config, head_dim: int, scalings: Collection[str] = SCALINGS) -> Metadata:
    """The `rope.…` keys. Raises ModelError for a scaling that is not among `scalings`."""
    rope = rope_parameters(config)
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
        metadata |= _yarn(rope)
    if rope["rope_type"] == "longrope":
        metadata |= _longrope(rope, config)
    return metadata


def require_unscaled(config: Config, layers: str, theta_key: str = "rope_theta") -> float:
    """The base of layers whose rotation llama.cpp's graph cannot scale. Raises ModelError where config.json does."""
    rope = rope_parameters(config, layers, theta_key)
    if rope["rope_type"] != "default":
        raise ModelError(
            f"config.json: rope_parameters.{layers}: rope_type {rope['rope_type']!r}: llama.cpp's graph for "
            f"{config['model_type']} has no scaling in these layers"
        )
    return float(rope["rope_theta"])


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


def _yarn(rope: dict[str, Any]) -> Metadata:
    """llama.cpp scales attention by 0.1 ln(factor) + 1 of its own, and by `attn_factor` besides."""
    for key, value in BETAS.items():
        given = rope.get(key, value) if key == "truncate" else rope.get(key) or value
        if given != value:
            raise ModelError(f"config.json: rope_parameters.{key} {rope[key]!r}: llama.cpp has only {value!r}")
    metadata: Metadata = {"rope.scaling.original_context_length": rope["original_max_position_embeddings"]}

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
    original = int(rope["original_max_position_embeddings"])
    stretch = rope.get("factor") or config["max_position_embeddings"] / original
    attention = rope.get("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    return {
        "rope.scaling.type": "longrope",
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": float(attention),
    }


def _factors(rope: dict[str, Any], length: str, n_rotated: int) -> TensorRule:
    factors = np.asarray(rope[f"{length}_factor"], np.float32)
    if factors.shape != (n_rotated // 2,):
        raise ModelError(
            f"config.json: rope_parameters.{length}_factor has {len(factors)} numbers; "
            f"the {n_rotated} rotated dimensions of a head need {n_rotated // 2}"
        )
    return TensorRule(f"rope_factors_{length}.weight", (), factors.shape, lambda: factors)
