"""A LoRA adapter as peft saves it, read with numpy and folded into a base a few rows at a time.

W + scale · left @ right, in float32. W is (out, in) as torch holds it: left = B (out, r), right = A (r, in); for
layers that hold W transposed (GPT-2's Conv1D, embeddings) left = Aᵀ, right = Bᵀ. scale is lora_alpha / r, with
rsLoRA lora_alpha / √r (Kalajdzievski 2023).
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.errors import ModelError
from edgeft.export.folder import StoredTensor, read_safetensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
MERGE_FIRST = (
    "fold it into the base first and export the merged model; peft does it: "
    "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)"
)
WRAPPED = re.compile(r"\.(modules_to_save|base_layer)\.")
EMBEDDING_OR_HEAD = re.compile(r"(embed_tokens|wte|word_embeddings|tok_embeddings|lm_head|output)\.weight$")
MOVES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
# What changes the model otherwise than by W + scale · B A.
UNSUPPORTED = (
    "use_dora", "lora_bias", "trainable_token_indices", "layer_replication", "target_parameters",
    "alora_invocation_tokens",
)  # fmt: skip


@dataclass(frozen=True)
class LowRank:
    """What is added to a matrix of the base: scale · left (rows, r) @ right (r, cols), float32."""

    left: np.ndarray
    right: np.ndarray
    scale: float

    def rows(self, first: int, last: int) -> np.ndarray:
        """The rows `first` to `last` (exclusive) of the product, float32."""
        product: np.ndarray = (self.left[first:last] @ self.right) * np.float32(self.scale)
        return product


@dataclass(frozen=True)
class Adapter:
    """What an adapter changes, by the base's tensor names: matrices added to, and tensors replaced."""

    path: Path
    low_rank: dict[str, LowRank]
    whole: dict[str, StoredTensor]


def read_adapter(path: Path, base: Mapping[str, StoredTensor], *, tied: bool) -> Adapter:
    """Read the adapter folder `path` for a base with these tensors; `tied`: its head is its embedding.

    Raises ModelError when it is missing, damaged, does not fit the base or is of a kind that cannot be folded.
    """
    config = _read_config(path)
    stored = read_safetensors(path / WEIGHTS)
    low_rank: dict[str, LowRank] = {}
    whole: dict[str, StoredTensor] = {}
    for key in stored:
        name = key.removeprefix(PREFIX)
        module, _, kind = name.partition(".lora_")
        if ".original_module." in name:  # beside resized embeddings peft keeps what they were
            continue
        adapted = WRAPPED.sub(".", name) if not kind else f"{module}.weight"
        if tied and EMBEDDING_OR_HEAD.search(adapted):
            raise ModelError(f"{path}: changes {adapted}, which the base uses as embedding and head; {MERGE_FIRST}")
        target = _in_base(path, adapted, base)
        if not kind:
            # Beside a low-rank embedding peft keeps the embedding itself, nearly always the base's own.
            if ".base_layer." not in name or not np.array_equal(stored[key].read(), base[target].read()):
                whole[target] = _replacement(path, target, stored[key], base[target])
        elif kind in ("A.weight", "embedding_A"):
            low_rank[target] = _low_rank(path, config, key, stored, base[target].shape)
        elif kind not in ("B.weight", "embedding_B"):
            raise ModelError(f"{path}: holds {key}, a kind of adapter that cannot be exported; {MERGE_FIRST}")
    if not low_rank and not whole:
        raise ModelError(f"{path / WEIGHTS}: holds no adapter; train it again")
    return Adapter(path, low_rank, whole)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: no {CONFIG}; is this the folder of a peft adapter?") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path / CONFIG}: cannot be read ({error})") from None
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{path}: an adapter of type {config.get('peft_type')}; only LORA can be exported")
    if config.get("bias", "none") != "none":
        raise ModelError(f"{path}: an adapter with trained biases (bias: {config['bias']}); {MERGE_FIRST}")
    if moved := moves_base(config):
        raise ModelError(
            f"{path}: init_lora_weights {moved!r}: peft changes the base's weights each time it loads the adapter, so "
            f"it is not for the base as it lies on disk; {MERGE_FIRST}, or save it with "
            "path_initial_model_for_weight_conversion"
        )
    if found := [key for key in UNSUPPORTED if config.get(key)]:
        raise ModelError(f"{path}: an adapter with {', '.join(found)} cannot be exported; {MERGE_FIRST}")
    return config


def moves_base(config: Mapping[str, Any]) -> str | None:
    """The `init_lora_weights` of an adapter_config.json that peft repeats on the base whenever it loads the adapter."""
    start = config.get("init_lora_weights")
    return start if isinstance(start, str) and start.lower().startswith(MOVES_BASE) else None


def _low_rank(
    path: Path, config: Mapping[str, Any], key: str, stored: Mapping[str, StoredTensor], shape: tuple[int, ...]
) -> LowRank:
    """The pair whose first factor is called `key`, for a matrix of the base of `shape`."""
    partner = key.replace(".lora_A.", ".lora_B.").replace(".lora_embedding_A", ".lora_embedding_B")
    if partner not in stored:
        raise ModelError(f"{path / WEIGHTS}: {key} has no {partner} beside it; train the adapter again")
    a, b = (np.asarray(stored[name].read(), np.float32) for name in (key, partner))
    transposed = "embedding" in key or bool(config.get("fan_in_fan_out"))
    left, right = (a.T, b.T) if transposed else (b, a)
    if left.shape[1] != right.shape[0] or (len(left), right.shape[1]) != shape:
        raise ModelError(
            f"{path}: {key} is for a matrix of {(len(left), right.shape[1])}, the base has {shape}; "
            "it belongs to another base"
        )
    module = key.removeprefix(PREFIX).partition(".lora_")[0]
    rank = _of_module(config.get("rank_pattern"), module, config["r"])
    alpha = _of_module(config.get("alpha_pattern"), module, config["lora_alpha"])
    if left.shape[1] != rank:
        raise ModelError(
            f"{path}: {key} has rank {left.shape[1]}, {CONFIG} says {rank}; peft would not load it. Copy the "
            f"{CONFIG} it was trained with"
        )
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LowRank(np.ascontiguousarray(left), np.ascontiguousarray(right), scale)


def _of_module(patterns: Mapping[str, float] | None, module: str, default: float) -> float:
    """The value for `module`: that of the first pattern its name ends with (peft's `get_pattern_key`)."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _in_base(path: Path, name: str, base: Mapping[str, StoredTensor]) -> str:
    """The base's tensor that `name` means; checkpoints of some models leave out, or add, a beginning."""
    found = [name] if name in base else [n for n in base if name.endswith(f".{n}") or n.endswith(f".{name}")]
    if len(found) != 1:
        raise ModelError(f"{path}: the base has no tensor {name}; the adapter belongs to another base")
    return found[0]


def _replacement(path: Path, name: str, stored: StoredTensor, base: StoredTensor) -> StoredTensor:
    if stored.shape != base.shape:
        raise ModelError(f"{path}: holds {name} whole in shape {stored.shape}, the base in {base.shape}; {MERGE_FIRST}")
    return stored
