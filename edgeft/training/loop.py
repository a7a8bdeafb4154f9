"""The training loop: every training stage goes through `train_loop`.

A stage brings a model, an optimizer, a plan of batches and a loss *summed* over tokens. The loop owns what
must not be written twice: the one division by the token count of the global batch, clipping, the schedule,
checkpoints, the guard against NaN, and the log.
"""

import json
import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeft.console import Log
from edgeft.errors import TrainingError
from edgeft.training import checkpoint
from edgeft.training.batches import Examples
from edgeft.training.optim import learning_rate_factor, warmup_count

LossSum = Callable[[Any, Any], torch.Tensor]


@dataclass(frozen=True)
class LoopConfig:
    """What steers the loop. `learning_rate` is the peak; `warmup_steps` below 1 is a share of all steps;
    `micro_batch_tokens` bounds the tokens of one forward pass; `autocast` is the compute type or None;
    `resume` goes on from a checkpoint if there is one."""

    learning_rate: float
    lr_scheduler_type: str
    warmup_steps: float
    max_grad_norm: float
    micro_batch_tokens: int
    save_steps: int
    eval_steps: int | None = None
    autocast: torch.dtype | None = None
    resume: bool = True


@dataclass(frozen=True)
class LoopResult:
    """What the loop did. Losses in nats per token; `seconds` of the last process only."""

    steps: int
    first_loss: float
    last_loss: float
    eval_loss: float | None
    tokens: int
    seconds: float


def train_loop(
    model: torch.nn.Module,
    optimizer: Any,
    tokens: Examples,
    plan: list[np.ndarray],
    loss_sum: LossSum,
    config: LoopConfig,
    *,
    out: Path,
    log: Log,
    validation: Examples | None = None,
    label: str = "train",
) -> LoopResult:
    """Run every step of `plan`, resuming from `out/checkpoint` if there is one.

    Writes `out/log.jsonl` (one object a step: step, loss, lr, grad_norm, tokens, seconds) and checkpoints.
    Raises TrainingError when the loss or the gradient is not finite; the last good checkpoint stays.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise TrainingError("no parameter trains: check train.lora.target_modules")
    total_steps, warmup = len(plan), warmup_count(config.warmup_steps, len(plan))
    start = checkpoint.resume(out / "checkpoint", model, optimizer) if config.resume else 0
    records = _Records(out / "log.jsonl", keep_below=start)
    if start:
        log.say(f"resuming at step {start} of {total_steps}")
    model.train()
    lengths = tokens.lengths
    began = time.perf_counter()
    done_tokens, eval_loss = 0, None
    with log.progress(label, total_steps, "steps", start) as progress:
        for step in range(start, total_steps):
            step_began = time.perf_counter()
            factor = learning_rate_factor(config.lr_scheduler_type, step, total_steps=total_steps, warmup=warmup)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * factor
            micro = [tokens.pack(index) for index in _split(plan[step], lengths, config.micro_batch_tokens)]
            loss = _accumulate(model, micro, loss_sum, config)
            grad_norm = float(torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm))
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                raise TrainingError(_not_finite(step, total_steps, loss, grad_norm, plan[step]))
            optimizer.step()
            optimizer.zero_grad()
            n_tokens = sum(b.n_tokens for b in micro)
            done_tokens += n_tokens
            records.write(
                step=step + 1,
                loss=loss,
                lr=config.learning_rate * factor,
                grad_norm=grad_norm,
                tokens=n_tokens,
                seconds=time.perf_counter() - step_began,
            )
            last = step + 1 == total_steps
            if validation is not None and (last or (config.eval_steps and (step + 1) % config.eval_steps == 0)):
                eval_loss = mean_loss(model, validation, loss_sum, config)
                records.write(step=step + 1, eval_loss=eval_loss)
            if (step + 1) % config.save_steps == 0 and not last:
                checkpoint.save(out / "checkpoint", model, optimizer, step + 1)
            rate = done_tokens / (time.perf_counter() - began)
            progress.update(step + 1, f"loss {loss:.3f}  {rate:,.0f} tok/s")
    losses = records.column("loss")
    evaluated = records.column("eval_loss")
    return LoopResult(
        steps=total_steps,
        first_loss=losses[0],
        last_loss=losses[-1],
        eval_loss=evaluated[-1] if evaluated else None,
        tokens=int(sum(records.column("tokens"))),
        seconds=time.perf_counter() - began,
    )


@torch.no_grad()
def mean_loss(model: torch.nn.Module, tokens: Examples, loss_sum: LossSum, config: LoopConfig) -> float:
    """Mean loss over all of `tokens`: in nats per token, or per pair or example of sets of these."""
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for index in _split(np.arange(len(tokens)), tokens.lengths, config.micro_batch_tokens):
        batch = tokens.pack(index)
        if batch.loss_count == 0:
            continue
        with _autocast(config):
            total += loss_sum(model, batch).item()
        count += batch.loss_count
    model.train(was_training)
    return total / max(1, count)


def _accumulate(model: torch.nn.Module, micro: list[Any], loss_sum: LossSum, config: LoopConfig) -> float:
    """Back-propagate the mean loss over all tokens of the global batch; unequal micro-batches included."""
    count = sum(b.loss_count for b in micro)
    total = 0.0
    for batch in micro:
        if batch.loss_count == 0:
            continue
        with _autocast(config):
            loss = loss_sum(model, batch) / count
        loss.backward()
        total += loss.item()
    return total


def _split(index: np.ndarray, lengths: np.ndarray, budget: int) -> Iterable[np.ndarray]:
    """Cut `index` into runs of at most `budget` tokens (a longer single example stands alone)."""
    start = total = 0
    for at, example in enumerate(index):
        if at > start and total + lengths[example] > budget:
            yield index[start:at]
            start, total = at, 0
        total += lengths[example]
    if start < len(index):
        yield index[start:]


def _autocast(config: LoopConfig) -> Any:
    if config.autocast is None:
        return nullcontext()
    return torch.autocast("cuda" if torch.cuda.is_available() else "cpu", dtype=config.autocast)


def _not_finite(step: int, total: int, loss: float, grad_norm: float, index: np.ndarray) -> str:
    shown = ", ".join(str(i) for i in index[:8]) + (" …" if len(index) > 8 else "")
    return (
        f"step {step + 1} of {total}: loss {loss}, gradient norm {grad_norm}; training stopped, the last good "
        f"checkpoint is kept. The batch holds the training examples {shown} (0-based, in the prepared set). "
        "Lower train.learning_rate, use torch_dtype: float32, or look at these examples"
    )


class _Records:
    """log.jsonl, cut back to the resumed step so that a step is never logged twice."""

    def __init__(self, path: Path, keep_below: int):
        self.rows: list[dict[str, float]] = []
        if keep_below and path.exists():
            for line in path.read_text("utf-8").splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:  # a line cut short by a kill
                    break
                if row["step"] <= keep_below:
                    self.rows.append(row)
        self.file = path.open("w", encoding="utf-8")
        for row in self.rows:
            self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def write(self, **row: float) -> None:
        self.rows.append(row)
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def column(self, name: str) -> list[float]:
        return [row[name] for row in self.rows if name in row]
