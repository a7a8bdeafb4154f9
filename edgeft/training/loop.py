"""The training loop: every training stage goes through `train_loop`.

A stage brings a model, an optimizer, a plan of batches and a loss *summed* over tokens. The loop owns what
must not be written twice: the one division by the token count of the global batch, clipping, the schedule,
checkpoints, evaluations and the best state, the guard, and the log.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeft.console import Log, silent_log
from edgeft.errors import TrainingError
from edgeft.training import checkpoint
from edgeft.training.batches import Examples
from edgeft.training.best import LOSS, Judge
from edgeft.training.distributed import ALONE, Workers
from edgeft.training.guard import DivergenceRule, Guard, explained_memory
from edgeft.training.optim import learning_rate_factor, warmup_count
from edgeft.training.records import Records
from edgeft.training.reporting import Reporter

LossSum = Callable[[Any, Any], torch.Tensor]

Watch = Callable[[Any], Mapping[str, float]]
"""Measures a model in training: named numbers, for log.jsonl and `metric_for_best_model`."""


@dataclass(frozen=True)
class LoopConfig:
    """What steers the loop. `learning_rate` is the peak; `warmup_steps` below 1 is a share of all steps;
    `micro_batch_tokens` bounds the tokens of one forward pass; `autocast` is the compute type or None;
    `resume` goes on from a checkpoint if there is one. `metric_for_best_model` (`eval_loss` or what a watch
    names) makes the best state the one kept; `early_stopping_patience` counts evaluations without a better one
    and makes it `eval_loss` where none is named; `divergence` None judges only that numbers are finite."""

    learning_rate: float
    lr_scheduler_type: str
    warmup_steps: float
    max_grad_norm: float
    micro_batch_tokens: int
    save_steps: int
    eval_steps: int | None = None
    autocast: torch.dtype | None = None
    resume: bool = True
    metric_for_best_model: str | None = None
    early_stopping_patience: int | None = None
    divergence: DivergenceRule | None = field(default_factory=DivergenceRule)


@dataclass(frozen=True)
class LoopResult:
    """What the loop did: `steps` done, losses in nats per token, `seconds` of the last process only.

    `eval_loss` and `metrics` (everything evaluated) are of the state the model has now: the best one where a
    metric was named, else the last. `overfitting_since` is the step after which the validation loss only rose.
    """

    steps: int
    first_loss: float
    last_loss: float
    eval_loss: float | None
    tokens: int
    seconds: float
    best_step: int | None = None
    best_value: float | None = None
    stopped_early: bool = False
    overfitting_since: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)


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
    watch: Sequence[Watch] = (),
    reporters: Sequence[Reporter] = (),
    workers: Workers = ALONE,
) -> LoopResult:
    """Run every step of `plan`, resuming from `out/checkpoint` if there is one.

    Each of `watch` measures the model at every evaluation, beside the loss on `validation`; `reporters` get every
    row of the log; `workers` share each batch. Writes checkpoints, the best state and `out/log.jsonl`: one object
    a step (step, loss, lr, grad_norm, tokens, seconds) and one an evaluation (step, train_loss since the one
    before, eval_loss, what `watch` measures).
    Raises TrainingError when nothing trains or nothing can be evaluated, when the loss or the gradient is not
    finite or diverges (guard.DivergenceRule), when memory is short: the last good checkpoint stays.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise TrainingError("no parameter trains: check train.lora.target_modules")
    if not plan:
        raise TrainingError("there is no step to take: the training set is empty")
    log = log if workers.writes else silent_log()
    run = _Run(model, optimizer, loss_sum, config, out / "checkpoint", log, workers, plan)
    run.watch_with(validation, watch)
    workers.begin(trained)
    start = run.resume() if config.resume else 0
    total, lengths = len(plan), tokens.lengths
    if start:
        log.say(f"resuming at step {start} of {total}")
    model.train()
    began, done_tokens, step = time.perf_counter(), 0, start
    path = out / "log.jsonl" if workers.writes else None
    with (
        Records(path, keep_up_to=start, reporters=reporters if workers.writes else ()) as records,
        log.progress(label, total, "steps", start) as progress,
    ):
        while step < total and not run.judge.exhausted:
            row = run.train_step(step, tokens, lengths)
            step += 1
            records.write(step, **row)
            done_tokens += int(row["tokens"])
            last = step == total
            if run.evaluates and (last or (config.eval_steps and step % config.eval_steps == 0)):
                run.evaluate(step, records)
            if step % config.save_steps == 0 and not (last or run.judge.exhausted) and run.guard.calm:
                records.sync()
                run.save(step)
            rate = done_tokens / (time.perf_counter() - began)
            progress.update(step, f"loss {row['loss']:.3f}  {rate:,.0f} tok/s")
    return run.finish(step, records, time.perf_counter() - began)


def mean_loss(
    model: torch.nn.Module, tokens: Examples, loss_sum: LossSum, config: LoopConfig, workers: Workers = ALONE
) -> float:
    """Mean loss over all of `tokens`: in nats per token, or per pair or example of sets of these.

    Raises TrainingError when nothing in `tokens` carries loss.
    """
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    mine = workers.share(np.arange(len(tokens)), tokens.lengths)
    with torch.no_grad():
        for index in _split(mine, tokens.lengths, config.micro_batch_tokens):
            batch = tokens.pack(index)
            if batch.loss_count == 0:
                continue
            with _autocast(config):
                total += loss_sum(model, batch).item()
            count += batch.loss_count
    model.train(was_training)
    total, counted = workers.sum_numbers(total, count)
    if counted == 0:
        raise TrainingError("there is no loss to measure: no example of this set has a token that is learned")
    return total / counted


@dataclass
class _Run:
    """What one call of `train_loop` works with."""

    model: torch.nn.Module
    optimizer: Any
    loss_sum: LossSum
    config: LoopConfig
    folder: Path
    log: Log
    workers: Workers
    plan: list[np.ndarray]

    def __post_init__(self) -> None:
        patience = self.config.early_stopping_patience
        metric = self.config.metric_for_best_model or (LOSS if patience else None)
        self.judge, self.guard = Judge(metric, patience), Guard(self.config.divergence)
        self.fingerprint = checkpoint.fingerprint(self.plan)
        self.warmup = warmup_count(self.config.warmup_steps, len(self.plan))
        self.saved_best: int | None = None  # the best step the last checkpoint names

    def watch_with(self, validation: Examples | None, watch: Sequence[Watch]) -> None:
        """Take what is evaluated; an empty validation set is none."""
        self.validation = validation if validation is not None and len(validation) else None
        self.watch = watch
        self.evaluates = self.validation is not None or bool(watch)
        if self.judge.metric == LOSS and self.validation is None:
            raise TrainingError(
                "train.metric_for_best_model and early_stopping_patience need validation examples, and there are "
                "none; give data.validation some, or take these keys out"
            )
        if self.validation is not None and not _has_loss(self.validation):
            raise TrainingError("no validation example has a token that is learned; look at data.validation")

    def train_step(self, step: int, tokens: Examples, lengths: np.ndarray) -> dict[str, float]:
        """Step `step` (0-based); the numbers to log."""
        began, total, parameters = time.perf_counter(), len(self.plan), self._trained()
        rate = self.config.learning_rate * learning_rate_factor(
            self.config.lr_scheduler_type, step, total_steps=total, warmup=self.warmup
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        mine = self.workers.share(self.plan[step], lengths)
        split = list(_split(mine, lengths, self.config.micro_batch_tokens))
        with explained_memory(
            f"step {step + 1} of {total}", [lengths[index] for index in split], sum(p.numel() for p in parameters)
        ):
            micro = [tokens.pack(index) for index in split]
            count, n_tokens = self.workers.sum_numbers(
                sum(batch.loss_count for batch in micro), sum(batch.n_tokens for batch in micro)
            )
            loss = _accumulate(self.model, micro, self.loss_sum, self.config, count)
            (loss,) = self.workers.sum_numbers(loss)
            self.workers.sum_gradients(parameters)
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm))
            self.guard.check(step, total, loss, norm, self.plan[step])
            self.optimizer.step()
        self.optimizer.zero_grad()
        seconds = time.perf_counter() - began
        return {"loss": loss, "lr": rate, "grad_norm": norm, "tokens": int(n_tokens), "seconds": seconds}

    def evaluate(self, step: int, records: Records) -> None:
        """Measure the model after `step` steps, keep it if it is the best, and say both."""
        measured = self._measure(f"evaluation after step {step}")
        odd = [f"{name} {value}" for name, value in measured.items() if not math.isfinite(value)]
        if odd:
            raise TrainingError(
                f"evaluation after step {step}: {', '.join(odd)}; training stopped, the last good checkpoint is "
                "kept. Lower train.learning_rate or use torch_dtype: float32"
            )
        losses = records.column("loss", after=self.judge.last_step)
        train_loss = sum(losses) / max(1, len(losses))
        records.write(step, train_loss=train_loss, **measured)
        overfitted_before = self.judge.overfitting_since
        if self.judge.see(step, measured) and self.workers.writes:
            checkpoint.save_best(self.folder, self.model, step)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in measured.items())
        self.log.say(f"step {step}: training loss {train_loss:.4g}, {shown}")
        if self.judge.overfitting_since is not None and overfitted_before is None:
            self.log.say(
                f"overfitting since step {self.judge.overfitting_since}: the validation loss rises while the "
                "training goes on; fewer epochs or metric_for_best_model: eval_loss keep the better state"
            )

    def save(self, step: int) -> None:
        """Write a checkpoint; every worker calls this."""
        states = self.workers.gather(checkpoint.random_state() if not self.workers.writes else {})
        if not self.workers.writes:
            return
        extra = {"judge": self.judge.state_dict(), "guard": self.guard.state_dict()}
        checkpoint.save(
            self.folder,
            self.model,
            self.optimizer,
            step,
            plan=self.fingerprint,
            extra=extra,
            other_ranks=states[1:],
        )
        checkpoint.drop_best(self.folder, [s for s in (self.saved_best, self.judge.best_step) if s is not None])
        self.saved_best = self.judge.best_step

    def resume(self) -> int:
        """Go on from the last checkpoint; the steps that are done."""
        resumed = checkpoint.resume(
            self.folder,
            self.model,
            self.optimizer,
            plan=self.fingerprint,
            rank=self.workers.rank,
            say=self.log.say,
        )
        if resumed is None:
            return 0
        if resumed.extra:
            self.judge.load_state_dict(resumed.extra["judge"])
            self.guard.load_state_dict(resumed.extra["guard"])
        self.saved_best = self.judge.best_step
        return resumed.step

    def finish(self, step: int, records: Records, seconds: float) -> LoopResult:
        """Give the model its best state, if one is asked for, and sum up."""
        judge = self.judge
        handed = step
        if judge.best_step is not None:
            self.workers.wait()
            checkpoint.load_best(self.folder, self.model, judge.best_step)
            handed = judge.best_step
            self.log.say(f"best state: {judge.metric} {judge.best_value:.4g} after step {handed}")
        if judge.exhausted:
            self.log.say(f"stopped early at step {step}: {judge.patience} evaluations without a better {judge.metric}")
        evaluated = [row for row in records.rows if "train_loss" in row and row["step"] == handed]
        losses = records.column("loss")
        metrics = {n: v for row in evaluated[-1:] for n, v in row.items() if n not in ("step", "train_loss")}
        return LoopResult(
            steps=step,
            first_loss=losses[0],
            last_loss=losses[-1],
            eval_loss=metrics.get(LOSS),
            tokens=int(sum(records.column("tokens"))),
            seconds=seconds,
            best_step=judge.best_step,
            best_value=judge.best_value,
            stopped_early=judge.exhausted,
            overfitting_since=judge.overfitting_since,
            metrics=metrics,
        )

    def _measure(self, what: str) -> dict[str, float]:
        measured: dict[str, float] = {}
        lengths = self.validation.lengths if self.validation is not None else np.zeros(1, dtype=np.int64)
        split = [lengths[i] for i in _split(np.arange(len(lengths)), lengths, self.config.micro_batch_tokens)]
        with explained_memory(what, split, sum(p.numel() for p in self._trained())):
            if self.validation is not None:
                measured[LOSS] = mean_loss(self.model, self.validation, self.loss_sum, self.config, self.workers)
            if self.workers.writes:
                for measure in self.watch:
                    measured |= measure(self.model)
        self.model.train()
        return self.workers.from_first(measured)

    def _trained(self) -> list[torch.nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]


def _accumulate(model: torch.nn.Module, micro: list[Any], loss_sum: LossSum, config: LoopConfig, count: float) -> float:
    """Back-propagate the loss of these micro-batches over `count`, the loss count of the *global* batch.

    Every micro-batch of every worker divides by the same number: unequal ones weigh what they hold.
    """
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


def _has_loss(examples: Examples) -> bool:
    return any(examples.pack(np.array([at])).loss_count for at in range(len(examples)))


def _autocast(config: LoopConfig) -> Any:
    if config.autocast is None:
        return nullcontext()
    return torch.autocast("cuda" if torch.cuda.is_available() else "cpu", dtype=config.autocast)
