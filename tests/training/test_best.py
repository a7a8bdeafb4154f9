"""Evaluations in the loop: the best state is kept, training stops early, overfitting is said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeft.training.batches import Batch
from edgeft.training.best import Judge
from edgeft.training.keeping import SaveRule
from edgeft.training.records import Records
from tests.training.bigram import bigram_loss_sum, make_config, random_tokens, train_bigram
from tests.training.test_loop_failures import Say


class Scripted:
    """A watch that measures what the script says, and remembers the weights it saw."""

    def __init__(self, *values: float, name: str = "exact_match") -> None:
        self.values, self.name = list(values), name
        self.seen: list[dict[str, torch.Tensor]] = []

    def __call__(self, model: torch.nn.Module) -> dict[str, float]:
        self.seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return {self.name: self.values[min(len(self.seen), len(self.values)) - 1]}


def test_the_best_state_is_the_one_handed_over(tmp_path: Path) -> None:
    watch = Scripted(0.1, 0.7, 0.3, 0.7, 0.2, 0.1)
    weights, result = train_bigram(
        tmp_path, watch=[watch], validation=random_tokens(9, 1), config=make_config(metric_for_best_model="exact_match")
    )
    assert (result.best_step, result.best_value, result.stopped_early) == (8, 0.7, False)  # the first of equals
    assert all(torch.equal(weights[name], value) for name, value in watch.seen[1].items())
    assert not all(torch.equal(weights[name], value) for name, value in watch.seen[-1].items())
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    (at_best,) = [row for row in rows if row["step"] == 8 and "eval_loss" in row]
    assert result.metrics == {"eval_loss": at_best["eval_loss"], "exact_match": 0.7}
    losses = [row["loss"] for row in rows if "loss" in row and 4 < row["step"] <= 8]
    assert at_best["train_loss"] == pytest.approx(sum(losses) / 4)
    assert len(list((tmp_path / "checkpoint").glob("best-*"))) <= 2


def test_evaluating_changes_nothing(tmp_path: Path) -> None:
    plain, _ = train_bigram(tmp_path / "plain")
    watched, _ = train_bigram(tmp_path / "watched", watch=[Scripted(*[0.1] * 9)], validation=random_tokens(9, 1))
    assert all(torch.equal(value, watched[name]) for name, value in plain.items())


@pytest.mark.parametrize(
    ("patience", "values", "stop"),
    [(1, (0.5, 0.6, 0.6), 12), (2, (0.5, 0.4, 0.6, 0.5, 0.6), 20), (3, (0.5, 0.6, 0.7, 0.8, 0.7, 0.9), None)],
)
def test_early_stopping(patience: int, values: tuple[float, ...], stop: int | None, tmp_path: Path) -> None:
    config = make_config(metric_for_best_model="exact_match", early_stopping_patience=patience)
    _, result = train_bigram(tmp_path, watch=[Scripted(*values)], config=config)
    assert result.stopped_early == (stop is not None)
    assert stop is None or result.steps == stop


def test_patience_alone_watches_the_validation_loss(tmp_path: Path) -> None:
    """Three examples learned by heart: the loss on others rises."""
    log = Say()
    _, result = train_bigram(
        tmp_path,
        tokens=random_tokens(6, 1),
        validation=random_tokens(20, 2),
        epochs=80,
        config=make_config(learning_rate=0.1, early_stopping_patience=3, save=SaveRule(steps=5)),
        log=log,
    )
    assert result.stopped_early
    assert result.best_step is not None
    assert result.best_step == result.steps - 12 == result.overfitting_since
    assert result.eval_loss == result.best_value
    assert any(line.startswith(f"overfitting since step {result.best_step}") for line in log.lines)
    assert any(line.startswith(f"stopped early at step {result.steps}: 3 evaluations") for line in log.lines)


@pytest.mark.parametrize(
    ("losses", "since"),
    [([3, 2, 1, 2, 3, 4], 3), ([3, 2, 1, 2, 3, 2, 3, 4], None), ([1, 2, 3, 4], 1), ([3, 2, 1, 1, 1, 1], None)],
)
def test_overfitting_is_three_rises_in_a_row(losses: list[float], since: int | None) -> None:
    judge = Judge(None, None)
    for step, loss in enumerate(losses, 1):
        judge.see(step, {"eval_loss": float(loss)})
    assert judge.overfitting_since == since


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the loop may catch it."""


def killed_after(calls: int) -> Callable[[Any, Batch], torch.Tensor]:
    left = calls

    def loss_sum(model: Any, batch: Batch) -> torch.Tensor:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return bigram_loss_sum(model, batch)

    return loss_sum


@pytest.mark.parametrize("patience", [None, 2])
def test_resumed_evaluations_best_state_and_stop_are_the_same(patience: int | None, tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {
        "tokens": random_tokens(20, 1),
        "validation": random_tokens(9, 2),
        "epochs": 8,
        "config": make_config(learning_rate=0.1, metric_for_best_model="eval_loss", early_stopping_patience=patience),
    }
    undisturbed, expected = train_bigram(tmp_path / "a", **kwargs)
    assert expected.best_step is not None
    assert expected.best_step < expected.steps
    for calls in (1, 6, 4, 7):
        with pytest.raises(Killed):
            train_bigram(tmp_path / "b", loss_sum=killed_after(calls), **kwargs)
    resumed, result = train_bigram(tmp_path / "b", **kwargs)
    assert all(torch.equal(value, resumed[name]) for name, value in undisturbed.items())
    assert (result.best_step, result.best_value, result.steps) == (
        expected.best_step, expected.best_value, expected.steps,
    )  # fmt: skip
    assert logged(tmp_path / "b") == logged(tmp_path / "a")


def logged(out: Path) -> list[dict[str, float]]:
    """The rows of the log but for the time they took."""
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_a_log_cut_short_by_a_kill_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
    with Records(path, keep_up_to=2) as records:
        assert path.read_text() == '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n'
        records.write(3, loss=0.5)
    assert records.column("loss") == [2.0, 1.0, 0.5]
    assert records.column("loss", after=1) == [1.0, 0.5]
    assert path.read_text().splitlines()[-1] == '{"step": 3, "loss": 0.5}'
    with Records(path, keep_up_to=0) as fresh:
        assert fresh.rows == []
