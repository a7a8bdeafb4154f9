"""A time limit: fewer runs and fewer examples, chosen by the clock and a seed, never by the answers."""

import itertools
import json
import math
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgeft.bench import worker
from edgeft.bench.accuracy import Answer, Evaluation, Scoring, score_answers, score_some
from edgeft.bench.answers import evaluate_file
from edgeft.bench.backends import Setup
from edgeft.bench.examples import Example
from edgeft.bench.file import BenchResult, BenchSettings, bench_file
from edgeft.bench.gate import collect, judge
from edgeft.bench.latency import LatencyPlan
from edgeft.bench.paired import pair_accuracies
from edgeft.bench.passes import TimeLimit
from edgeft.bench.shares import wilson_interval
from edgeft.console import silent_log
from edgeft.errors import Interrupted, UsageError
from edgeft.report.build import build_report
from edgeft.report.terminal import to_terminal
from tests.bench.fake_model import FakeModel

PLAN: dict[str, Any] = {"n_gen": 4, "repetitions": 5, "warmup": 1, "synthetic": [[2, 4]] * 3}


class Clock:
    """Time that passes only when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class SlowModel(FakeModel):
    """Takes a second for every answer."""

    def __init__(self, clock: Clock) -> None:
        super().__init__({})
        self.clock = clock

    def stream(self, prompt_ids: Sequence[int], *, max_new_tokens: int, **_: object) -> Iterator[int]:  # type: ignore[override]
        self.clock.now += 1.0
        yield from range(max_new_tokens)


@pytest.mark.parametrize(
    ("seconds", "warm_ups", "runs"),
    [
        (None, 3, 15),
        (1000.0, 3, 15),
        (10.5, 3, 6),  # 3 s of warm-up, then rounds of 3 s; a third one would end at 12 s
        (5.0, 2, 3),  # the first round takes what is left
        (4.0, 1, 3),
        (3.5, 1, 3),
        (2.5, 1, 2),  # the first round ends in its middle
        (0.0, 1, 1),
    ],
)
def test_rounds_that_fit_the_time(seconds: float | None, warm_ups: int, runs: int) -> None:
    clock = Clock()
    model = SlowModel(clock)
    said: list[str] = []
    cases, _ = worker.cases_of(model, [], PLAN)
    limit = TimeLimit(seconds, clock)
    counted = worker.run_cases(model, cases, PLAN, lambda event, **_: said.append(event), limit=limit)
    assert (said.count("progress") - said.count("run"), said.count("run")) == (warm_ups, runs)
    assert counted["planned_runs"] == 15


def test_a_limit_of_a_part_and_of_nothing() -> None:
    clock = Clock()
    limit = TimeLimit(10.0, clock)
    clock.now = 4.0
    half = limit.part(0.5)
    assert (limit.left_s, half.left_s, TimeLimit(None).left_s, TimeLimit(None).part(0.5).left_s) == (6, 3, None, None)
    assert (limit.allows(5.9), limit.allows(6.0), TimeLimit(None).allows(math.inf)) == (True, False, True)
    clock.now = 11.0
    assert (limit.left_s, limit.allows()) == (0.0, False)


CHILD = """
import json, sys
order = json.loads(sys.stdin.readline())
def say(event, **content): print(json.dumps({"event": event, **content}), flush=True)
host = {"n_threads": 1, "n_cores": 2, "cpu": "c"}
say("loaded", load_ms=1.0, size_bytes=1, n_gen=3, left_out=0, host=host)
if order["task"] == "speed":
    for i in range(2):
        say("run", run=dict(prompt=0, repetition=i, n_prompt=1, ttft_ms=1.0, prefill_ms=1.0, itl_ms=[1.0, 2.0]))
        say("progress", done=i + 1)
    say("measured", load_ms=[1.0], peak_rss_bytes=1, planned_runs=40)
else:
    for prompt in order["prompts"][:ANSWERS]:
        text = prompt["prompt"][0]["content"]
        say("answer", answer=dict(text=text, finish="stop", n_prompt=1, n_new=1))
say("done")
"""


def child(answers: int) -> list[str]:
    """One that answers so many prompts with the question itself, then ends."""
    return [sys.executable, "-c", CHILD.replace("ANSWERS", str(answers))]


class Stopped:
    """A log during which someone presses Ctrl-C when `label` stands at `at`."""

    def __init__(self, label: str, at: int) -> None:
        self.label, self.at, self.now = label, at, ""

    def say(self, text: str) -> None:
        pass

    @contextmanager
    def progress(self, label: str, total: int, unit: str, start: int = 0) -> Iterator[Any]:
        self.now = label
        yield self

    def update(self, done: int, note: str = "") -> None:
        if (self.now, done) == (self.label, self.at):
            raise KeyboardInterrupt


def examples(count: int) -> list[Example]:
    """Every third reference is the question, so every third answer is right."""
    return [Example(({"role": "user", "content": str(i)},), str(i) if i % 3 == 0 else "-") for i in range(count)]


def test_the_scored_examples_are_a_seeded_sample_in_the_order_of_the_file() -> None:
    how: dict[str, Any] = {"max_new_tokens": 4, "command": child(12), "log": silent_log()}

    def scored(seed: int) -> Evaluation:
        limit = TimeLimit(60.0)
        return evaluate_file(Path("m.gguf"), examples(30), Scoring(), Setup(), limit=limit, seed=seed, **how)

    found = scored(7)
    places = list(range(30))
    random.Random(7).shuffle(places)
    assert found.scored == tuple(sorted(places[:12]))
    right = sum(place % 3 == 0 for place in places[:12])
    (score,) = found.scores
    assert (found.n, found.n_asked, score.value) == (12, 30, right / 12)
    assert score.ci95 == wilson_interval(right, 12)
    assert [row["index"] for row in found.predictions()] == sorted(places[:12])
    assert [row["text"] for row in found.predictions()] == [str(place) for place in sorted(places[:12])]
    assert scored(8).scored != found.scored


def test_all_examples_in_time_are_scored_as_without_a_limit() -> None:
    how: dict[str, Any] = {"max_new_tokens": 4, "command": child(30), "log": silent_log()}
    with_limit, without = (
        evaluate_file(Path("m.gguf"), examples(30), Scoring(), Setup(), limit=limit, **how).to_json() | {"seconds": 0}
        for limit in (TimeLimit(60.0), None)
    )
    assert with_limit == without
    assert (with_limit["scored"], with_limit["shortfall"]) == (None, "")


def bench(tmp_path: Path, answers: int, log: Any = None, **settings: Any) -> BenchResult:
    (tmp_path / "model.gguf").touch()
    wanted = BenchSettings(latency=LatencyPlan(cold_loads=1), **settings)
    how: dict[str, Any] = {"command": child(answers), "with_roofline": False, "log": log or silent_log()}
    return bench_file(tmp_path / "model.gguf", examples(300), wanted, Setup(), **how)


def test_what_the_time_left_out_is_said_everywhere(tmp_path: Path) -> None:
    content = json.loads(json.dumps(bench(tmp_path, 120, minutes=5.0).to_json()))
    note = "scored 120 of 300 examples in 5 minutes; 6 minutes would score all"
    assert (content["complete"], content["accuracy"]["n"], content["accuracy"]["shortfall"]) == (True, 120, note)
    text = " ".join(to_terminal(build_report({"bench": content})).split())
    assert note in text
    assert "2 runs (of 40 planned: more did not fit the time) of 3 tokens" in text
    (row,) = judge({"exact_match": ">= 0"}, collect(content, None, None)).rows
    assert (row.ok, row.n) == (True, 120)
    assert "over 120 of 300 examples: more did not fit the time" in row.note


@pytest.mark.parametrize(
    ("minutes", "seconds", "all_minutes"), [(5.0, 200.0, 13), (2.0, 60.0, 4), (0.5, 0.1, 1), (5.0, 80.0, 6)]
)
def test_the_minutes_that_would_score_all(minutes: float, seconds: float, all_minutes: int) -> None:
    """120 of 300 took `seconds`; speed was cut, so that it would get a third of a longer time as well."""
    from edgeft.bench.file import timed
    from edgeft.bench.latency import Measurement

    answers = {place: Answer("a", "stop", 1, 1) for place in range(120)}
    found = score_some(examples(300), answers, Scoring(), seconds)
    measured = Measurement([1.0], [], 1, 1, n_gen=3, left_out=0, planned_runs=40)
    told = timed(found, BenchSettings(minutes=minutes), measured, TimeLimit(0.0)).shortfall
    assert f"; {all_minutes} minute" in told


@pytest.mark.parametrize(("label", "at", "n"), [("latency", 2, 0), ("accuracy", 50, 50)])
def test_ctrl_c_leaves_what_was_measured(tmp_path: Path, label: str, at: int, n: int) -> None:
    with pytest.raises(Interrupted) as raised:
        bench(tmp_path, 60, Stopped(label, at))
    content = json.loads(json.dumps(raised.value.partial.to_json()))
    assert (content["complete"], content["failure"]) == (False, "stopped with Ctrl-C")
    assert (len(content["latency"]["runs"]), content["accuracy"]["n"]) == (2, n)


def test_no_time_is_refused() -> None:
    for minutes in (0.0, -1.0, math.nan):
        with pytest.raises(UsageError, match="give more than 0"):
            BenchSettings(minutes=minutes)


def accuracy(right: Sequence[int], places: Sequence[int] | None) -> dict[str, Any]:
    """bench.json's accuracy over `places` of ten examples, of which those in `right` are answered well."""
    every = [Example(({"role": "user", "content": str(i)},), "x") for i in range(10)]
    answers = {i: Answer("x" if i in right else "y", "stop", 1, 1) for i in (range(10) if places is None else places)}
    whole = score_answers(every, [answers.get(i, Answer("", "stop", 1, 1)) for i in range(10)], Scoring(), 1.0)
    return (whole if places is None else score_some(every, answers, Scoring(), 1.0)).to_json()


SAMPLES: list[Sequence[int] | None] = [None, [1, 2, 5, 7], [9, 5, 2, 0]]


@pytest.mark.parametrize(("a", "b"), list(itertools.product(SAMPLES, SAMPLES)))
def test_pairs_and_drops_are_of_the_examples_that_both_scored(a: Sequence[int] | None, b: Sequence[int] | None) -> None:
    right = {"a": (0, 1, 2, 5), "b": (2, 5, 7, 9)}
    common = set(a or range(10)) & set(b or range(10))
    (row,) = pair_accuracies(accuracy(right["a"], a), accuracy(right["b"], b))
    wanted = sum(i in right["a"] for i in common) - sum(i in right["b"] for i in common)
    assert (row.n, row.difference) == (len(common), pytest.approx(wanted / len(common)))
    if a is None:
        baseline = {"forms": [{"form": "merged", **accuracy(right["a"], None)}]}
        drop = collect({"metrics": {}, "accuracy": accuracy(right["b"], b)}, baseline, None)["exact_match_drop"]
        assert (drop.value, drop.n) == (pytest.approx(wanted / len(common)), len(common))
