"""What the evaluations say together: which state is the best, when to stop, since when the model overfits."""

from dataclasses import dataclass
from typing import Any

from edgeft.errors import TrainingError

LOSS = "eval_loss"  # lower is better; every other metric is a share, higher is better
OVERFITTING_AFTER = 3  # evaluations in a row with a higher validation loss than the one before


@dataclass
class Judge:
    """A fold over evaluations; a checkpoint holds it, so that a resumed run decides as an undisturbed one.

    `metric` names what the best state is best in, None for no best state; `patience` is the number of
    evaluations without a better one after which `exhausted` is true.
    """

    metric: str | None
    patience: int | None
    best_step: int | None = None
    best_value: float | None = None
    without_better: int = 0
    last_step: int = 0
    last_loss: float | None = None
    rises: int = 0
    lowest_step: int = 0
    overfitting_since: int | None = None

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.without_better >= self.patience

    def see(self, step: int, metrics: dict[str, float]) -> bool:
        """Take in the evaluation after `step` steps; whether its state is the best so far.

        Raises TrainingError when the metric asked for was not measured.
        """
        self._watch_loss(metrics.get(LOSS))
        self.last_step = step
        if self.metric is None:
            return False
        if self.metric not in metrics:
            raise TrainingError(
                f"train.metric_for_best_model: {self.metric} is not measured; measured: "
                f"{', '.join(sorted(metrics)) or 'nothing'}. A task metric needs train.eval_examples above 0, its "
                "name in bench.metrics, and references it applies to"
            )
        value = metrics[self.metric]
        if self.best_value is None or (value < self.best_value if self.metric == LOSS else value > self.best_value):
            self.best_step, self.best_value, self.without_better = step, value, 0
            return True
        self.without_better += 1
        return False

    def state_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return {name: value for name, value in vars(self).items() if name not in ("metric", "patience")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        for name, value in state.items():
            setattr(self, name, value)

    def _watch_loss(self, loss: float | None) -> None:
        if loss is None:
            return
        rises = self.last_loss is not None and loss > self.last_loss
        if rises and self.rises == 0:
            self.lowest_step = self.last_step
        self.rises = self.rises + 1 if rises else 0
        if self.rises == OVERFITTING_AFTER and self.overfitting_since is None:
            self.overfitting_since = self.lowest_step
        self.last_loss = loss
