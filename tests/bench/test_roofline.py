"""Bounds by hand, and what is remembered of a machine."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgeft.bench import remembered, roofline
from edgeft.bench.roofline import Machine, Work, shares
from edgeft.console import silent_log
from edgeft.errors import RuntimeFault

PEAKS = Machine(2, read_bytes_per_s=10e9, multiply_adds_per_s=100e9, noisy=False)
FAST = {"decode_tokens_per_s": 40.0, "prompt_tokens_per_s": 500.0}


def test_bounds_by_hand() -> None:
    """100 MB of weights and 1 kB for each of 25,000 positions: 125 MB a token, 80 tokens/s at 10 GB/s."""
    found = shares(PEAKS, Work(100_000_000, 1000, 50_000_000), FAST, mean_position=25_000)
    assert found["decode"] == {"bound_tokens_per_s": 80.0, "achieved_share": 0.5}
    assert found["prompt"] == {"bound_tokens_per_s": 2000.0, "achieved_share": 0.25}


def test_bounds_of_what_is_not_known() -> None:
    nothing = {"decode_tokens_per_s": None, "prompt_tokens_per_s": None}
    found = shares(PEAKS, Work(100, 0, None), nothing, mean_position=0)
    assert (found["prompt"], found["decode"]["achieved_share"]) == (None, None)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Kernels that give what the file `given` holds and count themselves in the file `runs`."""
    script = tmp_path / "kernels.py"
    script.write_text(
        "import pathlib, sys\nhere = pathlib.Path(__file__).parent\n(here / 'runs').open('a').write(sys.argv[1])\n"
        "print((here / 'given').read_text())\n"
    )
    monkeypatch.setattr(roofline, "KERNELS", (roofline.KERNELS[0], str(script)))
    monkeypatch.setattr(remembered, "TIMEOUT_S", 600.0)
    (tmp_path / "given").write_text('{"read_bytes_per_s": 5.0, "multiply_adds_per_s": 7.0, "noisy": false}')
    return tmp_path


def test_a_machine_is_measured_once_for_each_number_of_threads(kernels: Path) -> None:
    folder = kernels / "cache"
    for n_threads in (1, 2, 1, 2):
        assert roofline.machine(n_threads, silent_log(), folder) == Machine(n_threads, 5.0, 7.0, False)
    assert (kernels / "runs").read_text() == "12"
    (kept,) = folder.iterdir()
    for damaged in ("{", "[]", '{"1": {"n_threads": 1}}'):
        kept.write_text(damaged)
        assert roofline.machine(1, silent_log(), folder).read_bytes_per_s == 5.0
    assert (kernels / "runs").read_text() == "12111"
    assert set(json.loads(kept.read_text())) == {"1"}


def test_a_busy_machine_is_measured_again_when_it_is_quiet(kernels: Path) -> None:
    quiet = (kernels / "given").read_text()
    folder, probe = kernels / "cache", roofline.peaks_probe(1)
    (kernels / "given").write_text('{"read_bytes_per_s": 1.0, "multiply_adds_per_s": 1.0, "noisy": true}')
    given = [
        remembered.measured_once(probe, "1", silent_log(), folder, quiet_now=lambda calm=calm: calm)["noisy"]
        for calm in (True, False, False, True)
    ]
    assert given == [True] * 4
    assert (kernels / "runs").read_text() == "11"  # the first time, and when it was quiet
    (kernels / "given").write_text(quiet)
    again = [remembered.measured_once(probe, "1", silent_log(), folder, quiet_now=lambda: True) for _ in range(2)]
    assert [each["read_bytes_per_s"] for each in again] == [5.0, 5.0]
    assert (kernels / "runs").read_text() == "111"


def test_what_is_remembered_is_better_than_a_failure(kernels: Path) -> None:
    folder, probe = kernels / "cache", roofline.peaks_probe(1)
    (kernels / "given").write_text('{"read_bytes_per_s": 1.0, "multiply_adds_per_s": 1.0, "noisy": true}')
    for _ in range(2):
        found = remembered.measured_once(probe, "1", silent_log(), folder, quiet_now=lambda: True)
        assert found["read_bytes_per_s"] == 1.0
        (kernels / "given").unlink(missing_ok=True)


def test_a_cache_that_cannot_be_written_does_not_stop(kernels: Path) -> None:
    (kernels / "cache").write_text("a file where the folder would be")
    assert roofline.machine(1, silent_log(), kernels / "cache").read_bytes_per_s == 5.0


def test_kernels_that_fail(kernels: Path) -> None:
    (kernels / "given").unlink()
    with pytest.raises(RuntimeFault, match=r"(?s)adds with 1 thread.* exit code 1.*FileNotFoundError.*--no-roofline"):
        roofline.machine(1, silent_log(), kernels / "cache")


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert remembered.cache_folder() == tmp_path / "edgeft"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert remembered.cache_folder() == Path.home() / ".cache" / "edgeft"


def test_the_real_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Any machine reads more than 0.1 GB and does more than 0.1 G multiply-adds a second."""
    monkeypatch.setattr(remembered, "TIMEOUT_S", 600.0)  # a busy machine may need longer than users are made to wait
    peaks = roofline.machine(1, silent_log(), tmp_path)
    assert peaks.read_bytes_per_s > 1e8
    assert peaks.multiply_adds_per_s > 1e8
