"""What goes wrong in training: a clear error, and the last good state stays."""

import math
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeft.errors import ArtifactError, TrainingError
from edgeft.training import checkpoint
from edgeft.training.batches import Batch, TokenSet
from edgeft.training.guard import DivergenceRule, Guard
from tests.training.bigram import Bigram, bigram_loss_sum, make_config, random_tokens, train_bigram


def saved_step(out: Path) -> int:
    return int(torch.load(out / "checkpoint" / checkpoint.FILE, weights_only=True)["step"])


class Say:
    """A log that remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, *_: Any) -> Any:
        from edgeft.console import silent_log

        return silent_log().progress("", 0, "")


def from_call(number: int, act: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any, Batch], torch.Tensor]:
    """A loss that is itself, and from the forward pass `number` on what `act` makes of it."""
    calls = 0

    def loss_sum(model: Any, batch: Batch) -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss = bigram_loss_sum(model, batch)
        return act(loss) if calls >= number else loss

    return loss_sum


def really_out_of_memory(loss: torch.Tensor) -> torch.Tensor:
    return loss + torch.empty(1 << 55).sum()  # 144 PB: torch's own error


def raises(error: BaseException) -> Callable[[torch.Tensor], torch.Tensor]:
    def act(loss: torch.Tensor) -> torch.Tensor:
        raise error

    return act


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda loss: loss * math.nan, r"step 8 of \d+: loss nan.*training examples \d+, .*learning_rate"),
        (lambda loss: loss * math.inf, r"step 8 of \d+: loss inf"),
        (lambda loss: (loss * 0).sqrt() + loss.detach(), r"step 8 of \d+: loss [\d.]+, gradient norm nan"),
        (
            really_out_of_memory,
            r"step 8 of \d+: out of memory.*\d+ tokens in \d+ examples, the longest of \d+; 2,013 p",
        ),
        (raises(torch.OutOfMemoryError("CUDA out of memory.")), r"out of memory.*Lower train.batch_tokens"),
        (raises(MemoryError()), r"out of memory.*gradient_checkpointing: always"),
    ],
)
def test_a_step_that_fails_keeps_the_checkpoint(act: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=message):
        train_bigram(tmp_path, loss_sum=from_call(8, act))
    assert saved_step(tmp_path) == 6


def test_an_error_that_is_not_about_memory_stays_itself(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes differ"):
        train_bigram(tmp_path, loss_sum=from_call(8, raises(RuntimeError("shapes differ"))))


def test_a_divergence_stops_and_keeps_a_checkpoint_from_before(tmp_path: Path) -> None:
    rule = DivergenceRule(steps=5, settled=10)
    with pytest.raises(TrainingError, match=r"step 24 of \d+: training diverges: .* 5 steps in a row .* examples \d+"):
        train_bigram(
            tmp_path, loss_sum=from_call(20, lambda loss: loss * 10), epochs=6, config=make_config(divergence=rule)
        )
    assert saved_step(tmp_path) == 18  # 21 would have been one of a step that was off


@pytest.mark.parametrize(
    ("losses", "norms", "stops_at"),
    [
        ([2.0] * 30 + [7.0] * 5, 1.0, 34),
        ([2.0] * 30 + [7.0] * 4 + [2.0] + [7.0] * 4, 1.0, None),  # hard batches, not in a row
        ([2.0] * 30 + [6.0] * 9, 1.0, None),  # below 3 × 2 + 0.5
        ([0.001] * 30 + [0.4] * 9, 1.0, None),  # noise around zero
        ([2.0] * 10 + [50.0] * 9, 1.0, None),  # too early to say what is usual
        ([2.0] * 30 + [2.5] * 9, [1.0] * 30 + [200.0] * 9, 34),  # gradients explode while the loss is above usual
        ([2.0] * 30 + [1.5] * 9, [1.0] * 30 + [200.0] * 9, None),  # the loss falls: nothing is wrong
    ],
)
def test_the_rule_of_divergence(losses: list[float], norms: float | list[float], stops_at: int | None) -> None:
    guard, stopped = Guard(DivergenceRule()), None
    for step, loss in enumerate(losses):
        try:
            guard.check(step, len(losses), loss, norms if isinstance(norms, float) else norms[step], np.arange(3))
        except TrainingError:
            stopped = step
            break
    assert stopped == stops_at


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"data/") + 1000] ^= 1  # inside a tensor: only a checksum can tell
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage: Any, tmp_path: Path) -> None:
    undisturbed, _ = train_bigram(tmp_path / "a")
    with pytest.raises(TrainingError):
        train_bigram(tmp_path / "b", loss_sum=from_call(8, lambda loss: loss * math.nan))
    damage(tmp_path / "b" / "checkpoint" / checkpoint.FILE)
    log = Say()
    resumed, _ = train_bigram(tmp_path / "b", log=log)
    assert any("state.pt is damaged" in line and "step 3" in line for line in log.lines)
    assert all(torch.equal(value, resumed[name]) for name, value in undisturbed.items())

    with pytest.raises(TrainingError):
        train_bigram(tmp_path / "c", loss_sum=from_call(8, lambda loss: loss * math.nan))
    for path in (tmp_path / "c" / "checkpoint").glob("state*.pt"):
        damage(path)
    with pytest.raises(ArtifactError, match=r"state\.pt: the checkpoint is damaged .*no other; delete the folder"):
        train_bigram(tmp_path / "c")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 6}, "of a run over other batches"),
        ({"epochs": 3}, r"of a run over other batches \(\d+ steps, .*; now \d+ steps"),
        ({"model": Bigram(width=8)}, r"of another model: .* not in\s+the same shape"),
        ({"model": torch.nn.Sequential(Bigram())}, "of another model: .* is not in both"),
        ({"optimizer": torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1.0)}, "of another optimizer"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError):
        train_bigram(tmp_path, loss_sum=from_call(8, lambda loss: loss * math.nan))
    with pytest.raises(ArtifactError, match=message):
        train_bigram(tmp_path, **changes)


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: the write fails half-way."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(loss: torch.Tensor) -> torch.Tensor:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
        return loss

    try:
        with pytest.raises(ArtifactError, match=r"state\.pt.*cannot write"):
            train_bigram(tmp_path, loss_sum=from_call(4, limit))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved_step(tmp_path) == 3
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == ["state.pt"]
    undisturbed, _ = train_bigram(tmp_path / "a")
    resumed, _ = train_bigram(tmp_path)
    assert all(torch.equal(value, resumed[name]) for name, value in undisturbed.items())


def test_a_full_disk_at_the_best_state(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(_: Any) -> dict[str, float]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        return {"exact_match": 0.5}

    try:
        with pytest.raises(ArtifactError, match=r"best-00000004.*cannot write"):
            train_bigram(tmp_path, watch=[limit], config=make_config(metric_for_best_model="exact_match"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


NOTHING_LEARNED = TokenSet.build([([1, 2, 3], [False, False, False])])
EMPTY = TokenSet.build([])


@pytest.mark.parametrize(
    ("config", "kwargs", "message"),
    [
        ({"metric_for_best_model": "eval_loss"}, {"validation": EMPTY}, "need validation examples"),
        ({"early_stopping_patience": 2}, {}, "need validation examples"),
        ({}, {"validation": NOTHING_LEARNED}, "no validation example has a token that is learned"),
        (
            {"metric_for_best_model": "macro_f1"},
            {"validation": random_tokens(5)},
            "macro_f1 is not measured; measured: e",
        ),
        ({"metric_for_best_model": "f"}, {"watch": [lambda model: {"f": math.nan}]}, "evaluation after step 4: f nan"),
    ],
)
def test_evaluations_that_cannot_be(config: dict, kwargs: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=message):
        train_bigram(tmp_path, config=make_config(**config), **kwargs)


def test_an_empty_validation_set_is_none(tmp_path: Path) -> None:
    _, result = train_bigram(tmp_path, validation=EMPTY)
    assert result.eval_loss is None


def test_nothing_trains(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(TrainingError, match="no parameter trains"):
        train_bigram(tmp_path, model=Bigram().requires_grad_(False), optimizer=optimizer)
