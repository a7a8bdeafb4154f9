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
from edgeft.training.keeping import Keeper, SaveRule
from edgeft.training.optim import learning_rate_factor, warmup_count
from edgeft.training.records import EVALUATION, Records
from edgeft.training.reporting import Reporter

LossSum = Callable[[Any, Any], torch.Tensor]

Watch = Callable[[Any], Mapping[str, float]]
"""Measures a model in training: named numbers, for log.jsonl and `metric_for_best_model`."""


@dataclass(frozen=True)
class LoopConfig:
    """What steers the loop. `learning_rate` is the peak; `warmup_steps` below 1 is a share of all steps;
    `micro_batch_tokens` bounds the tokens of one forward pass; `autocast` is the compute type or None;
    `save` says when checkpoints are written; `resume` goes on from one if there is one. `metric_for_best_model`
    (`eval_loss` or what a watch names) makes the best state the one kept; `early_stopping_patience` counts
    evaluations without a better one and makes it `eval_loss` where none is named; `divergence` None judges only that
    numbers are finite."""

    learning_rate: float
    lr_scheduler_type: str
    warmup_steps: float
    max_grad_norm: float
    micro_batch_tokens: int
    save: SaveRule = field(default_factory=SaveRule)
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
    keeper = Keeper(out / "checkpoint", model, optimizer, plan, config.save, log)
    run = _Run(model, optimizer, loss_sum, config, keeper, log, workers, plan)
    run.watch_with(validation, watch)
    workers.begin(trained)
    keeper.begin(run.judge, run.guard, workers, resume=config.resume)
    start, total = keeper.step, len(plan)
    model.train()
    began, done_tokens = time.perf_counter(), 0
    path, reporters = (out / "log.jsonl", reporters) if workers.writes else (None, ())
    with (
        Records(path, keep_up_to=start, evaluated=not run.owes_evaluation, reporters=reporters) as records,
        log.progress(label, total, "steps", start) as progress,
        keeper.kept_when_interrupted(records, label),
    ):
        if run.owes_evaluation:
            run.evaluate(records)
        while keeper.step < total and not run.judge.exhausted:
            row = run.train_step(tokens, records)
            if run.owes_evaluation:
                run.evaluate(records)
            if run.save_due or run.judge.exhausted:
                keeper.save(records)
            keeper.stop_if(run.stop_asked)
            done_tokens += int(row["tokens"])
            rate = done_tokens / (time.perf_counter() - began)
            progress.update(keeper.step, f"loss {row['loss']:.3f}  {rate:,.0f} tok/s")
        return run.finish(records, time.perf_counter() - began)


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
    keeper: Keeper
    log: Log
    workers: Workers
    plan: list[np.ndarray]

    def __post_init__(self) -> None:
        patience = self.config.early_stopping_patience
        metric = self.config.metric_for_best_model or (LOSS if patience else None)
        self.judge, self.guard = Judge(metric, patience), Guard(self.config.divergence)
        self.warmup = warmup_count(self.config.warmup_steps, len(self.plan))
        self.save_due = self.stop_asked = False

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

    @property
    def owes_evaluation(self) -> bool:
        """Whether the model as it is now is to be evaluated, and was not yet."""
        step, every = self.keeper.step, self.config.eval_steps
        due = self.evaluates and step > 0 and (step == len(self.plan) or bool(every and step % every == 0))
        return due and self.keeper.evaluated < step

    def train_step(self, tokens: Examples, records: Records) -> dict[str, float]:
        """Take the next step and write its row; the row."""
        began, step, total, parameters = time.perf_counter(), self.keeper.step, len(self.plan), self._trained()
        rate = self.config.learning_rate * learning_rate_factor(
            self.config.lr_scheduler_type, step, total_steps=total, warmup=self.warmup
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        mine = self.workers.share(self.plan[step], tokens.lengths)
        split = list(_split(mine, tokens.lengths, self.config.micro_batch_tokens))
        with explained_memory(
            f"step {step + 1} of {total}", [tokens.lengths[i] for i in split], sum(p.numel() for p in parameters)
        ):
            micro = [tokens.pack(index) for index in split]
            count, n_tokens = self.workers.sum_numbers(
                sum(batch.loss_count for batch in micro), sum(batch.n_tokens for batch in micro)
            )
            loss = _accumulate(self.model, micro, self.loss_sum, self.config, count)
            loss = self._agree(loss)
            self.workers.sum_gradients(parameters)
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm))
            with self.keeper.pause.held():
                self.guard.check(step, total, loss, norm, self.plan[step])
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.keeper.step += 1
                self.keeper.settle()
                row = {"loss": loss, "lr": rate, "grad_norm": norm, "tokens": int(n_tokens)}
                row["seconds"] = time.perf_counter() - began
                records.write(self.keeper.step, **row)
        return row

    def evaluate(self, records: Records) -> None:
        """Measure the model as it is, keep it if it is the best, and say both."""
        step = self.keeper.step
        measured = self._measure(f"evaluation after step {step}")
        odd = [f"{name} {value}" for name, value in measured.items() if not math.isfinite(value)]
        if odd:
            raise TrainingError(
                f"evaluation after step {step}: {', '.join(odd)}; training stopped, the last good checkpoint is "
                "kept. Lower train.learning_rate or use torch_dtype: float32"
            )
        losses = records.column("loss", after=self.judge.last_step)
        train_loss = sum(losses) / max(1, len(losses))
        overfitted_before = self.judge.overfitting_since
        with self.keeper.pause.held():
            records.write(step, **{EVALUATION: train_loss}, **measured)
            if self.judge.see(step, measured) and self.workers.writes:
                checkpoint.save_best(self.keeper.folder, self.model, step)
            self.keeper.evaluated = step
            self.keeper.settle()
        shown = ", ".join(f"{name} {value:.4g}" for name, value in measured.items())
        self.log.say(f"step {step}: training loss {train_loss:.4g}, {shown}")
        if self.judge.overfitting_since is not None and overfitted_before is None:
            self.log.say(
                f"overfitting since step {self.judge.overfitting_since}: the validation loss rises while the "
                "training goes on; fewer epochs or metric_for_best_model: eval_loss keep the better state"
            )

    def finish(self, records: Records, seconds: float) -> LoopResult:
        """Give the model its best state, if one is asked for, and sum up."""
        judge, step = self.judge, self.keeper.step
        handed = step
        if judge.best_step is not None:
            self.workers.wait()
            checkpoint.load_best(self.keeper.folder, self.model, judge.best_step)
            handed = judge.best_step
            self.log.say(f"best state: {judge.metric} {judge.best_value:.4g} after step {handed}")
        if judge.exhausted:
            self.log.say(f"stopped early at step {step}: {judge.patience} evaluations without a better {judge.metric}")
        evaluated = [row for row in records.rows if EVALUATION in row and row["step"] == handed]
        losses = records.column("loss")
        metrics = {n: v for row in evaluated[-1:] for n, v in row.items() if n not in ("step", EVALUATION)}
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

    def _agree(self, loss: float) -> float:
        """The loss of all workers; and for all of them alike whether to save after this step and whether to stop."""
        step = self.keeper.step + 1
        clock = self.workers.writes and self.keeper.clock_due
        asked = self.keeper.pause.asked is not None
        loss, due, stop = self.workers.sum_numbers(loss, float(clock), float(asked))
        self.stop_asked = stop > 0
        self.save_due = due > 0 or self.config.save.by_count(step, len(self.plan))
        return loss

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
