"""The loop: one division by the token count, resume to the bit, a stop at NaN."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeft.console import silent_log
from edgeft.errors import DataError, TrainingError
from edgeft.training import loop
from edgeft.training.attention import use_packed_attention
from edgeft.training.batches import Batch, TokenSet, plan_epochs
from edgeft.training.keeping import SaveRule
from edgeft.training.loop import LoopConfig, LoopResult, LossSum, train_loop
from edgeft.training.losses import next_token_loss_sum
from edgeft.training.models import load_model
from edgeft.training.optim import MuonAdamW, learning_rate_factor, warmup_count
from tests.tiny import make_tiny_llama
from tests.training.bigram import Bigram, make_config, train_bigram


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def tokens() -> TokenSet:
    rng = np.random.default_rng(3)
    return TokenSet.build(
        [(rng.integers(3, 300, n).tolist(), (rng.random(n) < 0.4).tolist()) for n in rng.integers(5, 60, 40)]
    )


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the loop may catch it."""


def _train(
    base: Path,
    tokens: TokenSet,
    out: Path,
    *,
    micro: int = 256,
    kill_after: int = 0,
    muon: bool = False,
    poison_at: int = 0,
) -> tuple[dict[str, torch.Tensor], LoopResult]:
    torch.manual_seed(0)
    model = load_model(base)
    use_packed_attention(model)
    optimizer = (
        MuonAdamW(model.named_parameters(), lr=1e-3, weight_decay=0.1)
        if muon
        else torch.optim.AdamW(model.parameters(), lr=1e-3)
    )
    calls = 0

    def loss_sum(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if kill_after and calls > kill_after:
            raise Killed
        loss = next_token_loss_sum(model, batch)
        return loss * math.nan if calls == poison_at else loss

    plan = plan_epochs(tokens.lengths, batch_tokens=256, epochs=2, seed=5)
    config = LoopConfig(1e-3, "cosine", 0.1, 1.0, micro, save=SaveRule(seconds=None, steps=2))
    result = train_loop(model, optimizer, tokens, plan, loss_sum, config, out=out, log=silent_log())
    return {n: p.detach().clone() for n, p in model.named_parameters()}, result


def _mean_of_means(model: Any, micro: list[Batch], loss_sum: LossSum, config: LoopConfig, count: float) -> float:
    """What many trainers do: the mean loss of each micro-batch, averaged."""
    used = [batch for batch in micro if batch.loss_count]
    losses = [loss_sum(model, batch) / batch.loss_count / len(used) for batch in used]
    sum(losses).backward()
    return float(sum(loss.item() for loss in losses))


def test_unequal_micro_batches_equal_one_big_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In steps of plain SGD, which move by the gradient itself; a mutant that averages means is far off."""

    def weights(name: str, micro: int) -> dict[str, torch.Tensor]:
        model = Bigram(dropout=0.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        config = make_config(micro_batch_tokens=micro, learning_rate=0.5, max_grad_norm=math.inf)
        return train_bigram(tmp_path / name, model=model, optimizer=optimizer, config=config)[0]

    whole, parts = weights("whole", 128), weights("parts", 40)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(loop, "_accumulate", _mean_of_means)
    same, mutant = weights("same", 128), weights("mutant", 40)
    for name, value in whole.items():
        torch.testing.assert_close(same[name], value, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(mutant[name], value, rtol=1e-2, atol=1e-3), name


def test_the_logged_loss_is_the_mean_over_loss_tokens(base: Path, tokens: TokenSet, tmp_path: Path) -> None:
    """Oracle: transformers' own loss of the first global batch, example by example, weighted by loss tokens."""
    _train(base, tokens, tmp_path)
    first = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    model = load_model(base)
    total = count = 0.0
    for i in plan_epochs(tokens.lengths, batch_tokens=256, epochs=2, seed=5)[0]:
        span = slice(tokens.offsets[i], tokens.offsets[i + 1])
        ids = torch.from_numpy(tokens.input_ids[span].astype(np.int64))[None]
        mask = torch.from_numpy(tokens.loss_mask[span])[None]
        n = int(mask[:, 1:].sum())
        if n:
            loss = model(input_ids=ids, labels=ids.masked_fill(~mask, -100)).loss
            total, count = total + loss.item() * n, count + n
    assert first["loss"] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("muon", [False, True])
def test_killed_and_resumed_training_is_bit_identical(base: Path, tokens: TokenSet, tmp_path: Path, muon: bool) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    undisturbed, _ = _train(base, tokens, tmp_path / "a", muon=muon)
    for calls in (1, 3, 4):  # before the first checkpoint, and twice between checkpoints
        with pytest.raises(Killed):
            _train(base, tokens, tmp_path / "b", kill_after=calls, muon=muon)
    resumed, _ = _train(base, tokens, tmp_path / "b", muon=muon)
    for name, value in undisturbed.items():
        assert torch.equal(value, resumed[name]), name
    steps = [
        [json.loads(line)["step"] for line in (tmp_path / run / "log.jsonl").read_text().splitlines()] for run in "ab"
    ]
    assert steps[0] == steps[1] == list(range(1, len(steps[0]) + 1))


def test_a_nan_loss_stops_and_keeps_the_checkpoint(base: Path, tokens: TokenSet, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step 5 of \d+: loss nan.*examples \d+, .*learning_rate"):
        _train(base, tokens, tmp_path, poison_at=5)
    assert torch.load(tmp_path / "checkpoint" / "state.pt", weights_only=True)["step"] == 4


def test_plan_covers_every_example_once_an_epoch_and_depends_on_the_seed_only() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 300)
    plan = plan_epochs(lengths, batch_tokens=100, epochs=2.5, seed=1)
    again = plan_epochs(lengths, batch_tokens=100, epochs=2.5, seed=1)
    other = plan_epochs(lengths, batch_tokens=100, epochs=2.5, seed=2)
    seen = np.bincount(np.concatenate(plan), minlength=300)
    assert all(lengths[step].sum() <= 100 for step in plan)
    assert set(seen) == {2, 3}
    assert (seen == 3).sum() == 150
    assert [s.tolist() for s in plan] == [s.tolist() for s in again]
    assert [s.tolist() for s in plan] != [s.tolist() for s in other]


@pytest.mark.parametrize(
    ("lengths", "message"),
    [([], "no usable training example"), ([10, 200], "200 tokens, more than train.batch_tokens")],
)
def test_plans_that_cannot_be_made(lengths: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        plan_epochs(np.array(lengths, dtype=np.int64), batch_tokens=100, epochs=1, seed=0)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_schedules_equal_transformers(schedule: str) -> None:
    """Oracle: transformers' get_scheduler after the warm-up (our warm-up starts above 0, so a step is not lost)."""
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(schedule, optimizer, num_warmup_steps=7, num_training_steps=50)
    theirs = []
    for _ in range(50):
        theirs.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    ours = [learning_rate_factor(schedule, step, total_steps=50, warmup=7) for step in range(50)]
    assert ours[7:] == pytest.approx(theirs[7:], abs=1e-12)
    assert all(0 < f < 1 for f in ours[:7])


def test_warmup_below_one_is_a_share() -> None:
    assert (warmup_count(0.1, 50), warmup_count(7, 50), warmup_count(0, 50)) == (5, 7, 0)
