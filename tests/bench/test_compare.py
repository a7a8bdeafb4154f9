"""Comparisons of scripted children whose speeds are known, and what becomes of children that fail."""

import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from edgeft.bench import compare_worker
from edgeft.bench.compare import ComparePlan, Comparison, Side, burst_cost, compare, judge_ratio, looks
from edgeft.bench.sides import find_side
from edgeft.bench.statistics import RatioInterval
from edgeft.cli.compare import command, comparison_text, decide
from edgeft.console import silent_log
from edgeft.errors import GateFailed, ModelError, RuntimeFault, UsageError
from edgeft.export.gguf import write_gguf
from tests.bench.fake_model import FakeModel
from tests.tiny import make_tiny_llama

CHILD = """
import json, os, random, sys, time
order = json.loads(sys.stdin.readline())
print(json.dumps({"event": "ready", "load_ms": 1.0, "n_prompt": 10, "clock": "cpu", "host": {}}), flush=True)
noise, bursts = random.Random(), 0
for line in sys.stdin:
    FAIL
    bursts += 1
    itl = [SPEED * noise.lognormvariate(0, SPREAD) for _ in range(8)]
    print(json.dumps({"event": "burst", "ttft_ms": 5.0, "prefill_ms": 4.0, "itl_ms": itl}), flush=True)
"""
QUICK = ComparePlan(runs=8, bursts=16, warmup=0)


def side(name: str, itl_ms: float = 1.0, spread: float = 0.01, fail: str = "pass") -> Side:
    code = CHILD.replace("FAIL", fail).replace("SPEED", str(itl_ms)).replace("SPREAD", str(spread))
    return Side(name, f"{name}.gguf", (sys.executable, "-S", "-c", code))


@pytest.mark.parametrize(
    ("itl_ms", "outcome"),
    [(1.0, "same"), (1.2, "slower"), (0.8, "faster")],
)
def test_outcomes_of_known_speeds(itl_ms: float, outcome: str) -> None:
    found = compare(side("a"), side("b", itl_ms), QUICK, log=silent_log())
    assert found.outcome == outcome
    assert found.interval is not None
    assert found.interval.ratio == pytest.approx(1 / itl_ms, rel=0.02)
    assert (len(found.pairs), len(found.ratios), found.failure) == (8, 8, None)
    assert {len(found.pairs[0].bursts[name]) for name in ("a", "b")} == {16}
    assert found.exceeds(0.05) is (outcome == "slower")
    assert found.exceeds(0.05, strict=True) is (outcome == "slower")
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert content["complete"]
    assert len(content["pairs"][0]["bursts"]["a"][0]["itl_ms"]) == 8


class Hours:
    """A clock that moves on by `step_s` each time it is read."""

    def __init__(self, step_s: float) -> None:
        self.step_s, self.now = step_s, 0.0

    def __call__(self) -> float:
        self.now += self.step_s
        return self.now


def test_a_time_limit_shortens_runs_and_then_ends_them() -> None:
    """Five minutes, and every look at the clock takes one second: bursts are cut, but a verdict is found. With 20
    seconds a look no eighth run begins."""
    found = compare(side("a"), side("b", 1.5), QUICK, log=silent_log(), clock=Hours(1.0))
    assert (len(found.pairs), found.outcome, found.stopped) == (8, "slower", None)
    kept: list[Comparison] = []
    cut = compare(side("a"), side("b", 1.5), QUICK, log=silent_log(), clock=Hours(20.0), keep=kept.append)
    assert 1 <= len(cut.pairs) < 8
    assert (cut.stopped, cut.interval, cut.failure) == ("time is up", None, None)
    assert {len(pair.bursts["a"]) for pair in cut.pairs} <= {1, 2}
    assert [len(each.pairs) for each in kept] == list(range(1, len(cut.pairs) + 1))
    assert "then time is up" in comparison_text(cut)


def test_runs_before_an_interruption_are_judged() -> None:
    def interrupt(found: Comparison) -> None:
        if len(found.pairs) == 8 and found.stopped is None:
            clock.__dict__["step_s"] = None  # the next look at the clock is Ctrl-C

    class Clock(Hours):
        def __call__(self) -> float:
            if self.step_s is None:
                self.step_s = 0.0
                raise KeyboardInterrupt
            return super().__call__()

    clock = Clock(0.0)
    plan = dataclasses.replace(QUICK, runs=9)
    found = compare(side("a"), side("b", 1.5), plan, log=silent_log(), clock=clock, keep=interrupt)
    assert (len(found.pairs), found.outcome, found.stopped) == (8, "slower", "interrupted")
    assert not found.to_json()["complete"]


def test_noise_makes_it_inconclusive_and_says_how_much_more() -> None:
    plan = dataclasses.replace(QUICK, bursts=2)
    found = compare(side("a", spread=0.8), side("b", spread=0.8), plan, log=silent_log())
    assert found.outcome == "inconclusive"
    assert found.more_runs is not None
    assert found.more_runs > 0
    assert found.detectable is not None
    assert found.detectable > 0.03
    assert found.exceeds(0.05, strict=True)
    assert not found.exceeds(0.05)
    lines = comparison_text(found).splitlines()
    assert lines[-1].startswith(f"inconclusive: about {found.more_runs} more runs")
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        ("if bursts == 3: os.kill(os.getpid(), 11)", "b: the runtime was killed by SIGSEGV"),
        ("if bursts == 3: time.sleep(60)", r"b: the runtime said nothing for 3 s; it hangs"),
        ("if bursts == 3: print('oops', flush=True)", "b: the runtime answered .*oops.* not JSON"),
        ("if bursts == 3: sys.exit('assertion failed')", "exit code 1\n  assertion failed"),
    ],
)
def test_a_file_that_fails_midway(fail: str, message: str) -> None:
    found = compare(side("a"), side("b", fail=fail), QUICK, log=silent_log(), silence_s=3.0)
    assert found.outcome == "inconclusive"
    assert found.interval is None
    assert found.ratios == ()
    assert found.failure is not None
    assert re.search(message, found.failure)
    assert not json.loads(json.dumps(found.to_json()))["complete"]
    assert found.exceeds(0.05, strict=True)


@pytest.mark.parametrize(("good", "last"), [(3, "no outcome: too few runs were finished for an interval"), (8, "")])
def test_runs_before_a_failure_are_kept(tmp_path: Path, good: int, last: str) -> None:
    count = tmp_path / "count"
    fail = f"bursts or open({str(count)!r}, 'a').write('x'); os.path.getsize({str(count)!r}) > {good} and os.abort()"
    plan = dataclasses.replace(QUICK, runs=9, bursts=4)
    found = compare(side("a"), side("b", fail=fail), plan, log=silent_log())
    assert (len(found.ratios), len(found.pairs), found.outcome) == (good, good, "inconclusive")
    assert found.failure is not None
    assert "SIGABRT" in found.failure
    assert (found.interval is None) is (good == 3)
    text = comparison_text(found)
    assert text.endswith(last or "(partial: a file failed)")


def test_an_error_of_the_runtime_keeps_its_words() -> None:
    fail = 'print(json.dumps({"event": "error", "kind": "ModelError", "message": "bad magic"}), flush=True)'
    assert compare(side("a"), side("b", fail=fail), QUICK, log=silent_log()).failure == "bad magic"


# Costs by hand from one burst of 4 tokens after a prompt of 10.
BURST = {"ttft_ms": 12.0, "prefill_ms": 10.0, "itl_ms": [1.0, 2.0, 6.0]}


@pytest.mark.parametrize(
    ("metric", "cost"),
    [
        ("decode_tokens_per_s", 3.0),
        ("prompt_tokens_per_s", 1.0),
        ("ttft_ms", 12.0),
        ("e2e_ms", 21.0),
        ("itl_ms_p50", 2.0),
        ("itl_ms_p95", float(np.quantile([1, 2, 6], 0.95))),
    ],
)
def test_what_a_burst_costs(metric: str, cost: float) -> None:
    assert burst_cost(metric, BURST, 10) == pytest.approx(cost)


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (0.98, 1.02, "same"),
        (1.001, 1.029, "same"),
        (1.001, 1.031, "faster"),
        (0.95, 0.999, "slower"),
        (0.95, 1.001, "inconclusive"),
        (0.97, 1.0, "inconclusive"),  # 1 / 1.03 = 0.9709
    ],
)
def test_outcome_of_an_interval(low: float, high: float, outcome: str) -> None:
    assert judge_ratio(RatioInterval(math.sqrt(low * high), low, high, 0.01), 0.03) == outcome


def test_looks() -> None:
    assert [looks(n) for n in (6, 10, 15, 30)] == [(6,), (10,), (10, 15), (10, 15, 22, 30)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metric": "speed"}, "speed: not a metric of compare; known: decode_tokens_per_s"),
        ({"runs": 5}, "5 runs are too few"),
        ({"n_gen": 1}, "no gap in 1 token"),
        ({"bursts": 0}, "at least 1 burst"),
        ({"same_within": 0.0}, "above 0 %"),
    ],
)
def test_a_plan_that_measures_nothing(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compare(side("a"), side("b"), dataclasses.replace(QUICK, **fields), log=silent_log())


ORDER = {
    "path": "m.gguf", "n_ctx": 64, "n_threads": None, "clock": "auto", "cpu": None,
    "prompt": [{"role": "user", "content": "q"}], "tools": None, "n_gen": 5,
}  # fmt: skip


def test_the_worker_answers_one_burst_for_each_order() -> None:
    said: list[dict[str, Any]] = []
    model = FakeModel({"q": "short"})
    compare_worker.serve(
        lambda path, **settings: model,
        [ORDER, {}, {}],
        lambda event, **content: said.append({"event": event} | content),
    )
    assert [one["event"] for one in said] == ["ready", "burst", "burst"]
    assert (said[0]["n_prompt"], said[0]["clock"]) == (6, "wall")  # the fake says it has three threads
    assert [len(one["itl_ms"]) for one in said[1:]] == [4, 4]
    assert all(stream["ignore_eos"] for stream in model.streams)
    assert model.closed


def test_the_worker_refuses_what_does_not_fit_or_stops_early() -> None:
    with pytest.raises(UsageError, match="leaves no room for 5 more in a context of 8"):
        compare_worker.serve(lambda path, **settings: FakeModel({}, n_ctx=8), [ORDER], print)

    class Early(FakeModel):
        def stream(self, prompt_ids: Any, **_: Any) -> Any:
            yield 1

    with pytest.raises(RuntimeFault, match="made 1 tokens instead of 5"):
        compare_worker.serve(lambda path, **settings: Early({}), [ORDER, {}], lambda event, **content: None)


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(("git", *who, *words), cwd=folder, check=True, capture_output=True)


def test_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "run" / "export").mkdir(parents=True)
    (tmp_path / "run" / "export" / "m.gguf").write_bytes(b"old")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    (tmp_path / "run" / "export" / "m.gguf").write_bytes(b"new")
    monkeypatch.chdir(tmp_path)
    for text, content in {
        "run/export/m.gguf": b"new", "run": b"new", "HEAD:run/export/m.gguf": b"old", "HEAD:run": b"old"
    }.items():  # fmt: skip
        found = find_side(text, tmp_path / "scratch")
        assert (found.name, Path(found.path).read_bytes()) == (text, content)
    (tmp_path / "run" / "export" / "n.gguf").write_bytes(b"two")
    (tmp_path / "run" / "bench").mkdir()
    with pytest.raises(ModelError, match=r"one model file is needed, it has: export/m.gguf, export/n.gguf; name"):
        find_side("run", tmp_path)
    (tmp_path / "run" / "bench" / "bench.json").write_text('{"file": "n.gguf", "metrics": {}}')
    assert Path(find_side("run", tmp_path).path).name == "n.gguf"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("nothing.gguf", ModelError, "nothing.gguf: no such file"),
        ("HEAD:nothing.gguf", UsageError, "git does not know it as REVISION:path"),
        ("nowhere:m.gguf", UsageError, "git does not know it as REVISION:path"),
        ("--output=x:m.gguf", UsageError, "neither a file nor REVISION:path"),
        ("pointer.gguf", ModelError, "a Git LFS pointer"),
    ],
)
def test_sides_that_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, error: type[Exception], message: str
) -> None:
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "one")
    (tmp_path / "pointer.gguf").write_text("version https://git-lfs.github.com/spec/v1\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        find_side(text, tmp_path / "scratch")


@pytest.mark.parametrize(
    ("interval", "outcome", "strict", "fails"),
    [
        ((0.90, 0.88, 0.92), "slower", False, True),
        ((0.96, 0.94, 0.98), "slower", False, False),  # slower, but by less than 5 %
        ((0.96, 0.94, 0.98), "slower", True, True),  # more than 5 % is not excluded: 1 / 1.05 = 0.952
        ((0.97, 0.955, 0.985), "slower", True, False),
        ((0.93, 0.85, 1.02), "inconclusive", False, False),
        ((0.99, 0.90, 1.09), "inconclusive", True, True),
        ((1.20, 1.10, 1.30), "faster", True, False),
    ],
)
def test_exit_code_of_a_slowdown(interval: tuple[float, float, float], outcome: str, strict: bool, fails: bool) -> None:
    found = Comparison("a", "b", QUICK, outcome, (), RatioInterval(*interval, 0.01), 0.05, None, None, ())
    if fails:
        with pytest.raises(GateFailed, match=r"b (is|may be) slower than a by more than 0\.05") as error:
            decide(found, 0.05, strict)
        assert error.value.exit_code == 3
    else:
        decide(found, 0.05, strict)


def test_a_failed_comparison_is_an_error_even_without_a_limit() -> None:
    found = Comparison("a", "b", QUICK, "inconclusive", (), None, None, None, "killed by SIGSEGV", ())
    with pytest.raises(RuntimeFault, match="the comparison ended after 0 runs: killed by SIGSEGV"):
        decide(found, None, False)


@pytest.mark.slow
def test_the_command_on_a_real_file(tmp_path: Path) -> None:
    make_tiny_llama(tmp_path / "model")
    file = tmp_path / "m.gguf"
    write_gguf(tmp_path / "model", file, ftype="F32", name="tiny", provenance={}, log=silent_log())
    words = [str(file), str(file), "--runs", "8", "--bursts", "2", "--n-gen", "4", "--n-ctx", "128", "--n-threads", "1"]
    out = tmp_path / "compare.json"
    done = CliRunner().invoke(command("compare", "Compare."), [*words, "--json", "--out", str(out)])
    assert done.exit_code == 0, done.output
    content = json.loads(out.read_text())
    assert (content["complete"], len(content["ratios"])) == (True, 8)
    assert content["pairs"][0]["ready"]["a"]["clock"] == ("cpu" if sys.platform in ("linux", "darwin") else "wall")
    assert {len(burst["itl_ms"]) for pair in content["pairs"] for burst in pair["bursts"]["b"]} == {3}
    shown = json.loads(done.stdout)
    assert shown == {name: value for name, value in content.items() if name != "pairs"}
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:3000])
    broken = CliRunner().invoke(command("compare", "Compare."), [words[0], str(tmp_path / "cut.gguf"), *words[2:]])
    assert isinstance(broken.exception, RuntimeFault)
    assert "cut.gguf" in str(broken.exception)
