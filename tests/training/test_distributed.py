"""Two workers take the steps one worker takes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeft.errors import TrainingError
from edgeft.training.distributed import ALONE, Workers, distributed
from tests.training.workers import STEPS, train


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What two gloo workers, started by torchrun, came to; by rank."""
    out = tmp_path_factory.mktemp("two")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "-m", "tests.training.workers", str(out),
    ]  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    return out, [torch.load(out / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_two_workers_equal_one(two: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    one = train(tmp_path, ALONE)
    out, (first, second) = two
    assert one["steps"] == STEPS
    assert {name: first["plain"][name] for name in ("steps", "tokens")} == {"steps": STEPS, "tokens": one["tokens"]}
    assert first["plain"]["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-6)
    for name, value in one["weights"].items():
        torch.testing.assert_close(first["plain"]["weights"][name], value, rtol=1e-6, atol=1e-6)
        assert torch.equal(first["plain"]["weights"][name], second["plain"]["weights"][name])
    assert (out / "plain" / "log.jsonl").read_text().count('"eval_loss"') == STEPS


def test_dividing_on_each_rank_is_seen(two: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    one, mutant = train(tmp_path, ALONE), two[1][0]["mutant"]
    for name, value in one["weights"].items():
        assert not torch.allclose(mutant["weights"][name], value, rtol=1e-4, atol=1e-4), name


def test_resumed_workers_go_on_to_the_bit_each_with_its_own_dropout(two: tuple[Path, list[dict[str, Any]]]) -> None:
    first, second = two[1]
    for name, value in first["dropout"]["weights"].items():
        assert torch.equal(first["resumed"]["weights"][name], value)
        assert torch.equal(second["resumed"]["weights"][name], value)
        assert not torch.equal(first["plain"]["weights"][name], value)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_are_the_batch_and_even(size: int) -> None:
    rng = np.random.default_rng(size)
    lengths = rng.integers(1, 300, 200)
    batch = rng.permutation(200)[:40]
    shares = [Workers(rank, size).share(batch, lengths) for rank in range(size)]
    assert sorted(np.concatenate(shares).tolist()) == sorted(batch.tolist())
    place = {example: at for at, example in enumerate(batch.tolist())}
    assert all([place[e] for e in share.tolist()] == sorted(place[e] for e in share.tolist()) for share in shares)
    loads = [int(lengths[share].sum()) for share in shares]
    assert max(loads) - min(loads) <= int(lengths[batch].max())
    few = [Workers(rank, size).share(batch[:2], lengths) for rank in range(size)]
    assert sum(map(len, few)) == 2


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', not a number"),
        ({"WORLD_SIZE": "2"}, "RANK is None, not a number; start the workers with torchrun"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "worker 0 of 2 cannot join the others"),
    ],
)
def test_an_environment_torchrun_did_not_make(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with distributed() as workers:
        assert workers is ALONE
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=message), distributed():
        pass
