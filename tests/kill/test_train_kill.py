"""SIGKILL at ten random moments of a training: resumed, it ends with the same bits as an undisturbed one."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
checkpoint = pytest.importorskip("edgeft.training.checkpoint")
pytestmark = pytest.mark.slow

KILLS = 10


class Forks:
    """Trainings of `training_forks.py`, one at a time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.kill.training_forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert self._answer() == "ready"

    def train(
        self,
        out: Path,
        kill_after_s: float | None = None,
        kill_at_row: int = 0,
        *,
        send: signal.Signals = signal.SIGKILL,
        save_seconds: float | None = None,
        epochs: float = 10,
    ) -> int:
        """Train in `out`, struck so many seconds after the log has so many rows, if it still runs; the exit code."""
        assert self.process.stdin is not None
        print(json.dumps([str(out), save_seconds, epochs]), file=self.process.stdin, flush=True)
        pid, ended = int(self._answer()), threading.Event()

        def strike() -> None:
            while rows(out) < kill_at_row and not ended.wait(0.001):
                pass
            if kill_after_s is not None and not ended.wait(kill_after_s):
                os.kill(pid, send)

        striker = threading.Thread(target=strike)
        striker.start()
        code = int(self._answer())
        ended.set()
        striker.join()
        return code

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def rows(out: Path) -> int:
    """Rows in the log so far."""
    log = out / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    running = Forks()
    yield running
    running.close()


def outcome(out: Path) -> tuple[dict[str, Any], list[str]]:
    """Weights, best state and step, and the rows of the log without the time they took."""
    logged = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    stripped = [json.dumps({name: value for name, value in row.items() if name != "seconds"}) for row in logged]
    return torch.load(out / "weights.pt", weights_only=True), stripped


def assert_same(found: tuple[dict[str, Any], list[str]], expected: tuple[dict[str, Any], list[str]]) -> None:
    assert found[0]["best"] == expected[0]["best"]
    assert found[1] == expected[1]
    for name, value in expected[0]["weights"].items():
        assert torch.equal(found[0]["weights"][name], value), name


def test_ten_kills_and_ten_kills_in_a_row(forks: Forks, tmp_path: Path) -> None:
    began = time.monotonic()
    assert forks.train(tmp_path / "whole") == 0
    whole_s = time.monotonic() - began
    expected = outcome(tmp_path / "whole")
    assert 0 < expected[0]["best"][0] < expected[0]["steps"]  # the last state is not the best: it must be restored
    moments, hits = random.Random(20240607), 0
    for kill in range(KILLS):
        out, row = tmp_path / f"kill-{kill}", len(expected[1]) * kill // KILLS
        step_s = whole_s / len(expected[1])
        hits += forks.train(out, kill_after_s=step_s * moments.random(), kill_at_row=row) == -signal.SIGKILL
        assert forks.train(out) == 0
        assert_same(outcome(out), expected)
    assert hits >= KILLS // 2
    out = tmp_path / "in-a-row"
    for _ in range(KILLS):
        forks.train(out, kill_after_s=moments.uniform(0.0, whole_s / 3))
    assert forks.train(out) == 0
    assert_same(outcome(out), expected)


def saved_step(out: Path) -> int:
    """Of the checkpoint, or of the one before where the kill came between the two renames."""
    states = [out / "checkpoint" / name for name in (checkpoint.FILE, checkpoint.PREVIOUS)]
    return next((int(torch.load(path, weights_only=True)["step"]) for path in states if path.exists()), 0)


def steps_done(out: Path) -> int:
    """Steps in the log; a kill may cut the last line short."""
    lines = (out / "log.jsonl").read_text().splitlines() if (out / "log.jsonl").exists() else []
    return sum('"grad_norm"' in line and line.endswith("}") for line in lines)


@pytest.mark.parametrize(
    ("send", "save_seconds", "repeated"),
    [
        (signal.SIGINT, 3600.0, 0),  # no checkpoint but the one the signal asks for and those of the epochs
        (signal.SIGTERM, 3600.0, 0),
        (signal.SIGHUP, 3600.0, 0),
        (signal.SIGKILL, None, 1),  # saved at every step: at most the one that was being saved is lost
    ],
)
def test_twenty_moments_of_thirty_steps(
    forks: Forks, tmp_path: Path, send: signal.Signals, save_seconds: float | None, repeated: int
) -> None:
    began = time.monotonic()
    assert forks.train(tmp_path / "whole", save_seconds=save_seconds, epochs=2) == 0
    expected, moments, hits = outcome(tmp_path / "whole"), random.Random(int(send)), 0
    step_s = (time.monotonic() - began) / len(expected[1])
    for moment in range(20):
        out, row = tmp_path / f"{moment}", 1 + len(expected[1]) * moment // 20
        strike = step_s * moments.random()
        code = forks.train(out, strike, row, send=send, save_seconds=save_seconds, epochs=2)
        assert code in (0, -send, 128 + send)
        hits += code != 0
        assert steps_done(out) - saved_step(out) <= repeated
        assert forks.train(out, save_seconds=save_seconds, epochs=2) == 0
        assert_same(outcome(out), expected)
    assert hits >= 10
