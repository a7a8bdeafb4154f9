"""The recipe's section `recover`: training against the grid of an exported file.

Names are those of transformers' `TrainingArguments`, peft's `LoraConfig`, TRL's `SFTConfig` (`completion_only_loss`)
and torchtune (`kd_ratio`).
"""

from typing import Literal

from pydantic import Field

from edgeft.sections.base import Section, TorchDtype


class Recover(Section):
    """Training the model so that rounding changes less of what it says; needs no labels."""

    target: str | None = None
    """The file whose grid is trained for, by its ftype or, of an ONNX folder, its name; null: the one that ships. The
    folder is rounded to the nearest (`rtn`), whatever its method."""
    method: Literal["full", "lora"] = "full"
    """`full`: every weight trains; `lora`: adapters on the layers' matrices, folded in at the end."""
    r: int = Field(16, ge=1)
    """Rank of the adapters."""
    lora_alpha: int = Field(32, ge=1)
    """Their update is multiplied by lora_alpha / r."""
    kd_ratio: float = Field(1.0, gt=0.0, le=1.0)
    """Weight of the KL divergence from the unrounded model; the rest is cross-entropy with the data's tokens."""
    completion_only_loss: bool = False
    """Compare the two models on answers only, not on prompts as well."""
    learning_rate: float = Field(1e-4, gt=0.0)
    """Peak learning rate, of a cosine to zero."""
    warmup_steps: float = Field(0.05, ge=0.0)
    """Steps of linear warm-up; below 1 it is a share of all steps."""
    num_train_epochs: float = Field(3, gt=0.0)
    """Passes over the training examples."""
    batch_tokens: int = Field(4096, ge=1)
    """Tokens in one optimizer step. All weights are rounded anew at each, which small batches do not pay for."""
    micro_batch_tokens: int = Field(4096, ge=1)
    """Tokens of one forward and backward pass, which memory grows with."""
    torch_dtype: TorchDtype = "auto"
    """Type of the multiplications in training; `auto`: bfloat16 where this machine multiplies it faster than float32,
    else float32. Weights and their rounding stay in float32, as do evaluations."""
    save_steps: int | None = Field(None, ge=1)
    """Optimizer steps between checkpoints, beside those that every minute and every epoch get; null: only these."""
    eval_steps: int | None = Field(None, ge=1)
    """Optimizer steps between evaluations, of which the best state is kept; null: at the end of each epoch."""
    eval_examples: int = Field(100, ge=1)
    """Validation examples the divergence is measured on."""
    num_threads: int | None = Field(None, ge=1)
    """CPU threads; null: torch's default."""
