"""What a training keeps: when checkpoints are written, and what a signal leaves."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeft.console import silent_log
from edgeft.interrupts import Interrupted
from edgeft.training.best import Judge
from edgeft.training.distributed import ALONE
from edgeft.training.guard import Guard
from edgeft.training.keeping import Keeper, SaveRule
from edgeft.training.records import Records
from tests.training.bigram import make_config, random_tokens, train_bigram


def test_when_a_checkpoint_is_due(tmp_path: Path) -> None:
    """By the clock, by epochs, by steps and at the end; saving that takes long is done less often."""
    by_count = SaveRule(seconds=None, epoch_steps=4, steps=3)
    assert [step for step in range(1, 11) if by_count.by_count(step, 10)] == [3, 4, 6, 8, 9, 10]
    assert [step for step in range(1, 6) if SaveRule().by_count(step, 5)] == [5]
    model = torch.nn.Linear(1, 1)
    for seconds, due in ((0.0, True), (None, False), (3600.0, False)):
        keeper = Keeper(tmp_path, model, torch.optim.SGD(model.parameters()), [], SaveRule(seconds), silent_log())
        keeper.begin(Judge(None, None), Guard(None), ALONE, resume=True)
        assert keeper.clock_due is due
    keeper.saved_at -= 3601
    assert keeper.clock_due
    keeper.step = 1
    with Records(None, keep_up_to=0) as records:
        keeper.save(records)
    assert not keeper.clock_due
    assert keeper.wait_s == 3600
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 1


def test_an_evaluation_cut_short_is_made_when_training_goes_on(tmp_path: Path) -> None:
    """Stopped inside the evaluation: the log and the weights are those of an undisturbed run all the same."""
    given: dict[str, Any] = {
        "tokens": random_tokens(30, 1), "validation": random_tokens(9, 2), "config": make_config(save=SaveRule()),
    }  # fmt: skip
    whole, _ = train_bigram(tmp_path / "whole", **given)
    calls = 0

    def measure(model: Any) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    with pytest.raises(Interrupted) as stopped:
        train_bigram(tmp_path / "cut", watch=[measure], **given)
    assert stopped.value.number == signal.SIGTERM
    assert stopped.value.kept == ("train: 8 of 15 steps",)
    resumed, _ = train_bigram(tmp_path / "cut", watch=[measure], **given)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    rows = [
        [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]
        for path in (tmp_path / "whole" / "log.jsonl", tmp_path / "cut" / "log.jsonl")
    ]
    assert rows[0] == rows[1]
