"""Activation checkpointing: layers whose activations are computed again in the backward pass, as many as memory asks.

Not to be confused with `checkpoint`, which saves the state of a run. Source of the idea: Chen et al. 2016, "Training
Deep Nets with Sublinear Memory Cost".

How much memory that saves, and how many layers a budget asks for, is in `edgeft.training_memory`.
"""

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from edgeft.errors import ModelError
from edgeft.training_memory import FREE_SHARE, ModelShape, free_memory_budget, parse_memory


def model_shape(model: Any, activation: torch.dtype, *, rank: int = 0, fused: bool = True) -> ModelShape:
    """The shape of a transformers or peft model whose activations are of type `activation`."""
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config.get_text_config()
    heads = config.num_attention_heads
    frozen = [p for p in model.parameters() if not p.requires_grad]
    return ModelShape(
        hidden=config.hidden_size,
        inner=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,  # GPT-2 names none
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
        weight_bytes=sum(p.numel() * p.element_size() for p in frozen),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        element_bytes=activation.itemsize,
        rank=rank,
        fused=fused,
    )


def apply_checkpointing(model: Any, layers: int) -> None:
    """Recompute the first `layers` layers of the model in the backward pass, and no other.

    Raises ModelError when the model has fewer layers that can be.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    found = [m for m in base.modules() if isinstance(m, GradientCheckpointingLayer)]
    if layers > len(found):
        raise ModelError(
            f"{type(base).__name__} has {len(found)} layers that can be computed again, not {layers}; "
            "set train.gradient_checkpointing: never"
        )
    recompute: Any = partial(checkpoint, use_reentrant=False)
    for number, layer in enumerate(found):
        layer.gradient_checkpointing = number < layers
        layer._gradient_checkpointing_func = recompute


def memory_budget(text: str | None, model: PreTrainedModel) -> int:
    """Bytes training may take: `text`, or `FREE_SHARE` of what is free where the model is.

    On a CPU what this process holds already counts as free, for the prediction counts it too.
    """
    if text is not None:
        return parse_memory(text)
    if model.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(model.device)
        return int(FREE_SHARE * (free + torch.cuda.memory_reserved(model.device)))
    return free_memory_budget()
