"""Optimizers and learning-rate schedules by their upstream names."""

import math
from collections.abc import Iterable
from typing import Any

import torch

from edgeft.errors import ModelError
from edgeft.sections import Train

SCHEDULES = ("cosine", "linear", "constant", "warmup_stable_decay")
DECAY_SHARE = 0.3  # of all steps, for warmup_stable_decay


def make_adamw(parameters: Iterable[torch.nn.Parameter], section: Train) -> torch.optim.Optimizer:
    """AdamW over the parameters that train, as `train.optim` names it; torch's fused kernel, or 8-bit moments.

    Raises ModelError when 8-bit moments are asked for without a GPU, where bitsandbytes has no kernel for them.
    """
    trained = [p for p in parameters if p.requires_grad]
    options: dict[str, Any] = {
        "lr": section.learning_rate,
        "betas": (section.adam_beta1, section.adam_beta2),
        "eps": section.adam_epsilon,
        "weight_decay": section.weight_decay,
    }
    if section.optim == "adamw":
        return torch.optim.AdamW(trained, fused=True, **options)
    if not torch.cuda.is_available():
        raise ModelError("train.optim: adamw_8bit needs a CUDA GPU; use adamw")
    import bitsandbytes

    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(trained, **options)
    return optimizer


class MuonAdamW:
    """Muon for the hidden matrices, AdamW for everything else, stepped as one.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the update is
    scaled to AdamW's RMS (`match_rms_adamw`, Liu et al. 2025, "Muon is Scalable for LLM Training"), so that
    one learning rate serves both.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, torch.nn.Parameter]], lr: float, weight_decay: float):
        trained = [(name, p) for name, p in named_parameters if p.requires_grad]
        hidden = [p for name, p in trained if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
        ids = {id(p) for p in hidden}
        rest = [p for _, p in trained if id(p) not in ids]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(hidden, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]

    @property
    def param_groups(self) -> list[dict]:
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict:
        return {str(i): part.state_dict() for i, part in enumerate(self.parts)}

    def load_state_dict(self, state: dict) -> None:
        for i, part in enumerate(self.parts):
            part.load_state_dict(state[str(i)])


def warmup_count(warmup_steps: float, total_steps: int) -> int:
    """`warmup_steps` as a count: below 1 it is a share of all steps, as in transformers 5."""
    return math.ceil(warmup_steps * total_steps) if warmup_steps < 1 else int(warmup_steps)


def learning_rate_factor(schedule: str, step: int, *, total_steps: int, warmup: int) -> float:
    """The factor on the peak learning rate at `step` (0-based).

    linear and cosine fall to 0 at `total_steps` as transformers' schedules of the same names;
    warmup_stable_decay is flat and falls linearly over the last `DECAY_SHARE` of the steps.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total_steps - warmup)
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return max(0.0, 1.0 - progress)
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    if schedule == "warmup_stable_decay":
        left = (total_steps - step) / max(1.0, DECAY_SHARE * total_steps)
        return min(1.0, left)
    raise ValueError(f"unknown schedule {schedule!r}")
