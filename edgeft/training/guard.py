"""When training must stop: numbers that are no numbers, a loss that runs away, memory that is not there."""

import math
import statistics
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edgeft.errors import TrainingError

NO_MEMORY = ("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory")
SHOWN_EXAMPLES = 8


@dataclass(frozen=True)
class DivergenceRule:
    """When a run counts as diverged: `steps` steps in a row of which each is off.

    A step is off when its loss is above `loss_factor` × the median loss of the last `window` good steps plus
    `loss_margin` nats, or when its gradient norm is above `gradient_factor` × their median norm while its loss
    is above their median loss. Nothing is judged before `settled` good steps. The margin keeps the rule from
    taking noise around a loss near zero for a divergence; the row of steps, a hard batch for one. A loss or
    gradient that is not finite stops training at once.
    """

    loss_factor: float = 3.0
    loss_margin: float = 0.5
    gradient_factor: float = 100.0
    steps: int = 5
    window: int = 100
    settled: int = 20


class Guard:
    """Judges every step by a rule; None judges only that numbers are finite."""

    def __init__(self, rule: DivergenceRule | None) -> None:
        self.rule = rule
        window = rule.window if rule else 0
        self.losses: deque[float] = deque(maxlen=window)
        self.norms: deque[float] = deque(maxlen=window)
        self.off = 0  # steps in a row

    @property
    def calm(self) -> bool:
        """Whether the last step was a good one: only then is a checkpoint written."""
        return self.off == 0

    def check(self, step: int, total: int, loss: float, norm: float, index: np.ndarray) -> None:
        """Judge step `step` (0-based) of `total`, made of the examples `index`. Raises TrainingError."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(
                f"step {step + 1} of {total}: loss {loss}, gradient norm {norm}; training stopped, the last good "
                f"checkpoint is kept. {_examples(index)}. Lower train.learning_rate, use torch_dtype: float32, or "
                "look at these examples"
            )
        if self.rule is None:
            return
        if not self._is_off(loss, norm, self.rule):
            self.off = 0
            self.losses.append(loss)
            self.norms.append(norm)
            return
        self.off += 1
        if self.off >= self.rule.steps:
            raise TrainingError(
                f"step {step + 1} of {total}: training diverges: loss {loss:.4g} and gradient norm {norm:.4g}, "
                f"{self.off} steps in a row far above their medians of {statistics.median(self.losses):.4g} and "
                f"{statistics.median(self.norms):.4g}; training stopped, the last good checkpoint is kept. "
                f"{_examples(index)}. Lower train.learning_rate or raise train.warmup_steps"
            )

    def state_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return {"losses": list(self.losses), "norms": list(self.norms), "off": self.off}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.losses.extend(state["losses"])
        self.norms.extend(state["norms"])
        self.off = int(state["off"])

    def _is_off(self, loss: float, norm: float, rule: DivergenceRule) -> bool:
        if len(self.losses) < rule.settled:
            return False
        usual_loss, usual_norm = statistics.median(self.losses), statistics.median(self.norms)
        runs_away = loss > rule.loss_factor * usual_loss + rule.loss_margin
        explodes = norm > rule.gradient_factor * usual_norm and loss > usual_loss
        return runs_away or explodes


@contextmanager
def explained_memory(what: str, batch_lengths: list[np.ndarray], n_trained: int) -> Iterator[None]:
    """Inside the block a lack of memory becomes a TrainingError that says what was asked of the machine.

    `batch_lengths`: for each forward pass the tokens of its examples; `n_trained`: trained parameters.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if isinstance(error, RuntimeError) and not _lacks_memory(error):
            raise
        largest = max(batch_lengths, key=lambda lengths: int(lengths.sum()), default=np.zeros(1, dtype=np.int64))
        longest = max((int(lengths.max()) for lengths in batch_lengths), default=0)
        raise TrainingError(
            f"{what}: out of memory. The largest forward pass has {int(largest.sum()):,} tokens in {len(largest):,} "
            f"examples, the longest of {longest:,}; {n_trained:,} parameters train. The last checkpoint is kept. "
            "Lower train.batch_tokens or data.max_length, or set train.gradient_checkpointing: always, "
            "torch_dtype: bfloat16 or method: qlora"
        ) from error


def _lacks_memory(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(sign in text for sign in NO_MEMORY)


def _examples(index: np.ndarray) -> str:
    shown = ", ".join(str(i) for i in index[:SHOWN_EXAMPLES]) + (" …" if len(index) > SHOWN_EXAMPLES else "")
    return f"The batch holds the training examples {shown} (0-based, in the prepared set)"
