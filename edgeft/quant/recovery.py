"""Recovery: training a model for the grid it will be exported on, to say again what it says unrounded.

The loss is self-distillation: KL(p ‖ q) between the model's own next-token distribution p before rounding and q of
the model with rounded weights (LLM-QAT, Liu et al. 2023, eq. 3, whose teacher is the full-precision model), beside
which cross-entropy with the data's labels may stand. Gradients pass the rounding straight through
(`edgeft.quant.rounded`). Needs no labels; the tokens are only where the two are compared.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeft.console import Log
from edgeft.quant.rounded import LowRank, RoundedModel, Rounding
from edgeft.training.attention import use_packed_attention
from edgeft.training.batches import TokenSet
from edgeft.training.best import LOSS
from edgeft.training.distill_losses import Objective, Teacher, distillation_loss_sum
from edgeft.training.loop import LoopConfig, LoopResult, LossSum, mean_loss, train_loop

MakeOptimizer = Callable[[Sequence[torch.nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Recovery:
    """The model to export, unrounded, and the divergences KL(unrounded ‖ rounded) on the held-out tokens, in nats a
    token: `kl_before` of the model as it was, `kl_after` of `model`."""

    model: Any
    kl_before: float
    kl_after: float
    loop: LoopResult


def recover(
    model: Any,
    roundings: Mapping[str, Rounding],
    tokens: TokenSet,
    validation: TokenSet,
    plan: list[np.ndarray],
    config: LoopConfig,
    *,
    make_optimizer: MakeOptimizer,
    kd_ratio: float = 1.0,
    lora: LowRank | None = None,
    out: Path,
    log: Log,
) -> Recovery:
    """Train the causal `model` (float32) so that it loses less when `roundings` round it; see RoundedModel.

    Compared are all positions that carry loss in `tokens`, in the batches of `plan`; the loss is kd_ratio · KL +
    (1 − kd_ratio) · cross-entropy. Kept is the state with the lowest KL on `validation`, where every evaluation has
    the weights just as the export will write them, multiplied in float32; if none is below the model's own, that
    stays as it is.
    Checkpoints and the log are in `out`, as `train_loop` writes them. `model` is left frozen, as the teacher.

    Raises TrainingError as `train_loop` does, and when there are no validation tokens.
    """
    use_packed_attention(model)
    student = copy.deepcopy(model)
    use_packed_attention(student)
    rounded = RoundedModel(student, roundings, lora=lora)
    loss_sum = _loss_sum(model, kd_ratio, config.autocast)
    kl_before = mean_loss(rounded, validation, loss_sum, config)
    log.say(f"KL to the unrounded model: {kl_before:.4g} nats a token before recovery")
    optimizer = make_optimizer([p for p in rounded.parameters() if p.requires_grad])
    optimizer.register_step_post_hook(rounded.changed)
    rounded.changed()  # train_loop may begin with the weights of a checkpoint
    result = train_loop(
        rounded,
        optimizer,
        tokens,
        plan,
        loss_sum,
        replace(config, metric_for_best_model=LOSS),
        out=out,
        log=log,
        validation=validation,
        label="recover",
    )
    rounded.settle()
    kl_after = mean_loss(rounded, validation, loss_sum, config)
    if not kl_after < kl_before:
        log.say(f"training did not lower it ({kl_after:.4g}); the model stays as it was")
        return Recovery(model, kl_before, kl_before, result)
    log.say(f"KL to the unrounded model: {kl_after:.4g} after, {kl_after / kl_before:.2f} of what it was")
    return Recovery(rounded.unround(), kl_before, kl_after, result)


def _loss_sum(model: Any, kd_ratio: float, autocast: torch.dtype | None) -> LossSum:
    """The objective in training; in evaluation the KL alone, in float32. In nats, summed over positions with loss."""
    vocabulary = model.config.get_text_config().vocab_size
    learned = distillation_loss_sum(Objective(kd_ratio=kd_ratio), vocabulary, Teacher(model, vocabulary, autocast))
    measured = distillation_loss_sum(Objective(), vocabulary, Teacher(model, vocabulary))

    def loss_sum(rounded: RoundedModel, batch: Any) -> torch.Tensor:
        if rounded.training:
            return learned(rounded.rounded(), batch)
        with torch.autocast(batch.input_ids.device.type, enabled=False):
            return measured(rounded.rounded(), batch)

    return loss_sum
