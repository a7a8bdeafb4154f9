"""Rotary position embeddings: the frequencies that config.json means.

Formulas: `transformers/modeling_rope_utils.py`. The file holds only the frequencies; cosines and sines are computed
for the positions of each run (`edgeft.export.onnx.rotary`).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeft.errors import ModelError
from edgeft.export.gguf.architectures.base import Config

Parameters = dict[str, Any]


@dataclass(frozen=True)
class Rope:
    """One rotation. Position p turns pair i of a head by p * frequencies[i]."""

    frequencies: np.ndarray
    """(pairs,) float32."""
    amplitude: float = 1.0
    """What cosines and sines are multiplied by."""
    long_frequencies: np.ndarray | None = None
    """(pairs,) float32, for texts longer than `short_tokens`."""
    short_tokens: int = 0


def rope_of(config: Config, parameters: Parameters, head_dim: int) -> Rope:
    """The rotation that `parameters` (of `rope_parameters`) mean. Raises ModelError for a
    `rope_type` without a formula here."""
    kind = parameters["rope_type"]
    if kind not in SCALINGS:
        raise ModelError(
            f"config.json: rope_type {kind!r} cannot be exported to ONNX; supported: {', '.join(sorted(SCALINGS))}"
        )
    n_rotated = int(head_dim * parameters["partial_rotary_factor"])
    exponents = np.arange(0, n_rotated, 2, dtype=np.float32) / np.float32(n_rotated)
    wavelengths = np.float32(parameters["rope_theta"]) ** exponents
    return SCALINGS[kind](config, parameters, wavelengths)


def _default(_: Config, __: Parameters, wavelengths: np.ndarray) -> Rope:
    return Rope(1 / wavelengths)


def _linear(_: Config, parameters: Parameters, wavelengths: np.ndarray) -> Rope:
    return Rope(1 / wavelengths / np.float32(parameters["factor"]))


def _llama3(_: Config, parameters: Parameters, wavelengths: np.ndarray) -> Rope:
    """Long wavelengths are slowed by `factor`, short ones left, those between blended."""
    factor, context = parameters["factor"], parameters["original_max_position_embeddings"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    frequencies = 1 / wavelengths
    turns = context * frequencies / (2 * math.pi)
    blend = np.clip((turns - low) / (high - low), 0, 1)
    return Rope((frequencies * ((1 - blend) / factor + blend)).astype(np.float32))


def _yarn(_: Config, parameters: Parameters, wavelengths: np.ndarray) -> Rope:
    original, factor = parameters["original_max_position_embeddings"], parameters["factor"]
    n_rotated = 2 * len(wavelengths)

    def dimension(turns: float) -> float:
        """Of the pair that turns so many times within the original context."""
        return n_rotated * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(parameters["rope_theta"]))

    low = dimension(parameters.get("beta_fast") or 32)
    high = dimension(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, n_rotated - 1)
    width = high - low if high != low else 0.001
    slowed = np.clip((np.arange(len(wavelengths), dtype=np.float32) - low) / width, 0, 1)
    frequencies = slowed / (factor * wavelengths) + (1 - slowed) / wavelengths
    return Rope(frequencies.astype(np.float32), _yarn_amplitude(parameters, factor))


def _yarn_amplitude(parameters: Parameters, factor: float) -> float:
    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    given = parameters.get("attention_factor")
    if given is not None:
        return float(given)
    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        return mscale(parameters["mscale"]) / mscale(parameters["mscale_all_dim"])
    return mscale(1.0)


def _longrope(config: Config, parameters: Parameters, wavelengths: np.ndarray) -> Rope:
    original = parameters["original_max_position_embeddings"]
    stretch = parameters.get("factor") or config["max_position_embeddings"] / original
    amplitude = parameters.get("attention_factor")
    if amplitude is None:
        amplitude = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    short, long = (np.asarray(parameters[f"{length}_factor"], np.float32) for length in ("short", "long"))
    for factors in (short, long):
        if factors.shape != wavelengths.shape:
            raise ModelError(
                f"config.json: rope_parameters: LongRoPE has {len(factors)} factors for {len(wavelengths)} pairs"
            )
    return Rope(1 / (short * wavelengths), float(amplitude), 1 / (long * wavelengths), int(original))


SCALINGS = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope}
