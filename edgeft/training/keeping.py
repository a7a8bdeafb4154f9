"""What a training keeps on disk while it runs, and when.

A checkpoint is written when the work since the last one takes a minute, at the end of every epoch, every
`save_steps` steps where asked for, and when someone asks the process to end (Ctrl-C, SIGTERM, SIGHUP). A step that is
not done when the signal comes is dropped: the state before it is what is kept.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeft.console import Log
from edgeft.interrupts import Interrupted, Pause
from edgeft.training import checkpoint
from edgeft.training.best import Judge
from edgeft.training.distributed import Workers
from edgeft.training.guard import Guard
from edgeft.training.records import Records

SAVE_SECONDS = 60.0
SAVING_SHARE = 0.1  # of the time, at most: checkpoints that take long to write are written less often


@dataclass(frozen=True)
class SaveRule:
    """When a checkpoint is due: every `seconds` of work, every `epoch_steps` and every `steps` steps; None: not so."""

    seconds: float | None = SAVE_SECONDS
    epoch_steps: int | None = None
    steps: int | None = None

    def by_count(self, step: int, total: int) -> bool:
        """Whether `step` of `total` ends an epoch or the training, or is one of every `steps`."""
        return any(every and step % every == 0 for every in (self.epoch_steps, self.steps)) or step == total


class Keeper:
    """Where a training stands (`step` steps done, the last evaluation after `evaluated` of them), on disk and off.

    `judge` and `guard` are kept with the weights. Every worker holds one; the first of them writes.
    """

    def __init__(
        self, folder: Path, model: torch.nn.Module, optimizer: Any, plan: list[np.ndarray], rule: SaveRule, log: Log
    ) -> None:
        self.folder, self.model, self.optimizer, self.rule, self.log = folder, model, optimizer, rule, log
        self.total, self.fingerprint = len(plan), checkpoint.fingerprint(plan)
        self.step = self.evaluated = self.saved = 0
        self.saved_best: int | None = None  # the best step the last checkpoint names

    def begin(self, judge: Judge, guard: Guard, workers: Workers, *, resume: bool) -> None:
        """Go on from the last checkpoint if there is one and `resume` allows it."""
        self.judge, self.guard, self.workers, self.resumes = judge, guard, workers, resume
        self.pause = Pause(at_once=workers.size == 1)
        if resume:
            self._resume()
        self.random = checkpoint.random_state()
        self.saved_at, self.wait_s = time.monotonic(), self.rule.seconds

    @property
    def clock_due(self) -> bool:
        """Whether the work since the last checkpoint is as much as may be lost."""
        return self.wait_s is not None and time.monotonic() - self.saved_at >= self.wait_s

    def settle(self) -> None:
        """What the training holds now is a state to keep: whole, with the random numbers that come next."""
        self.random = checkpoint.random_state()

    def save(self, records: Records) -> None:
        """Write a checkpoint, unless the loss is just running away; every worker calls this."""
        if not self.guard.calm or self.step == self.saved:
            return
        began = time.monotonic()
        with self.pause.held():
            records.sync()
            states = self.workers.gather(self.random)
            if self.workers.writes:
                self._write(states)
            self.saved, self.saved_at = self.step, time.monotonic()
        if self.rule.seconds is not None:
            self.wait_s = max(self.rule.seconds, (self.saved_at - began) / SAVING_SHARE)

    @contextmanager
    def kept_when_interrupted(self, records: Records, label: str) -> Iterator[None]:
        """Save the last whole state when someone asks the process to end in this block, and say so in the error."""
        with self.pause:
            try:
                yield
            except Interrupted as error:
                self.save(records)
                error.kept = (*error.kept, self._said(label))
                raise

    def stop_if(self, asked: bool) -> None:
        """End the work of all workers when one of them was asked to end."""
        if asked:
            raise Interrupted(self.pause.asked or signal.SIGINT)

    def _said(self, label: str) -> str:
        if not self.resumes:
            return f"{label}: nothing (train.resume_from_checkpoint is false)"
        return f"{label}: {self.saved} of {self.total} steps" if self.saved else f"{label}: no step was done yet"

    def _write(self, states: list[dict[str, Any]]) -> None:
        extra = {"judge": self.judge.state_dict(), "guard": self.guard.state_dict(), "evaluated": self.evaluated}
        checkpoint.save(
            self.folder, self.model, self.optimizer, self.step, plan=self.fingerprint, extra=extra, ranks=states
        )
        checkpoint.drop_best(self.folder, [s for s in (self.saved_best, self.judge.best_step) if s is not None])
        self.saved_best = self.judge.best_step

    def _resume(self) -> None:
        resumed = checkpoint.resume(
            self.folder,
            self.model,
            self.optimizer,
            plan=self.fingerprint,
            rank=self.workers.rank,
            say=self.log.say,
        )
        if resumed is None:
            return
        if resumed.extra:
            self.judge.load_state_dict(resumed.extra["judge"])
            self.guard.load_state_dict(resumed.extra["guard"])
        self.step = self.saved = resumed.step
        self.evaluated = int(resumed.extra.get("evaluated", resumed.step))
        self.saved_best = self.judge.best_step
        self.log.say(f"resuming at step {self.step} of {self.total}")
