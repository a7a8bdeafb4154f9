"""What makes a training cheaper without changing its result: `fused_lora`, recomputation, compiled layers."""

from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from edgeft.console import Log
from edgeft.sections import Train
from edgeft.training.activation_checkpointing import apply_checkpointing, memory_budget, model_shape
from edgeft.training.fused_lora import fuse_lora
from edgeft.training.models import DTYPES
from edgeft.training_memory import choose_checkpointing


def economize(model: PreTrainedModel, trained: torch.nn.Module, section: Train, log: Log) -> None:
    """Prepare `trained` (the model itself, or adapters on it) as the recipe asks, in place.

    Raises ModelError when the model's layers cannot be recomputed, RecipeError for a budget that is no size.
    """
    adapters = isinstance(trained, PeftModel)
    fused = False
    if isinstance(trained, PeftModel) and section.fused_lora:
        fusion = fuse_lora(trained)
        fused = fusion.fused > 0 and not fusion.kept
        log.say(fusion.describe())
    shape = model_shape(trained, DTYPES[section.torch_dtype], rank=section.lora.r if adapters else 0, fused=fused)
    tokens = min(section.micro_batch_tokens, max(p.batch_tokens for p in section.phases()))
    # The last layer's activations are needed at once: recomputing it would save nothing.
    layers = shape.layers - 1 if section.gradient_checkpointing == "always" else 0
    if section.gradient_checkpointing == "auto":
        budget = memory_budget(section.memory_budget, model)
        choice = choose_checkpointing(shape, tokens, budget)
        layers = choice.layers
        if layers:
            log.say(
                f"{layers} of {shape.layers} layers are recomputed in the backward pass: {choice.peak_bytes / 1e9:.1f} "
                f"GB of {budget / 1e9:.1f} GB" + ("" if choice.fits else "; even so more than the budget")
            )
    apply_checkpointing(trained, layers)
    if section.torch_compile:
        _compile(model)


def _compile(model: Any) -> None:
    """Compile the feed-forward blocks; attention over packed rows changes its shapes from batch to batch."""
    for layer in model.get_decoder().layers:
        layer.mlp.compile(dynamic=True)
