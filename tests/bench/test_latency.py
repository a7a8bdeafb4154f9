"""The measuring process: what it counts, and what becomes of one that crashes, hangs or lies."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.bench import latency, worker
from edgeft.bench.accuracy import Scoring
from edgeft.bench.answers import evaluate_file
from edgeft.bench.backends import Setup
from edgeft.bench.examples import Example
from edgeft.bench.latency import LatencyPlan, Measurement, Run, measure
from edgeft.console import silent_log
from edgeft.errors import ModelError, RunCutShort, RuntimeFault, UsageError
from tests.bench.fake_model import FakeModel

PLAN: dict[str, Any] = {"prompts": 2, "n_gen": 5, "repetitions": 3, "warmup": 1, "reloads": 2, "synthetic": []}
DOCS = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"


def prompts(*questions: str) -> list[dict[str, object]]:
    return [{"prompt": [{"role": "user", "content": q}], "tools": None} for q in questions]


def run_plan(model: FakeModel, questions: Sequence[str], plan: dict[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """The events of all cases, and how many prompts were left out."""
    said: list[dict[str, Any]] = []
    cases, left_out = worker.cases_of(model, prompts(*questions), plan)
    worker.run_cases(model, cases, plan, lambda event, **content: said.append({"event": event, **content}))
    return said, left_out


def test_worker_counts_tokens_and_runs() -> None:
    model = FakeModel({"q": "short", "qq": ""}, n_ctx=12)
    said, left_out = run_plan(model, ("q", "qq", "too long a question"), PLAN)
    runs = [event["run"] for event in said if event["event"] == "run"]
    assert left_out == 1
    assert [(r["prompt"], r["repetition"]) for r in runs] == [(p, r) for r in range(3) for p in (0, 1)]
    assert [r["n_prompt"] for r in runs[:2]] == [6, 7]
    assert {len(r["itl_ms"]) for r in runs} == {4}
    assert all(r["ttft_ms"] >= r["prefill_ms"] for r in runs)
    assert [event["done"] for event in said if event["event"] == "progress"] == list(range(1, 9))
    assert len(model.streams) == 8
    assert all(stream["ignore_eos"] for stream in model.streams)


class CountingModel(FakeModel):
    """Gives as many tokens as it is asked for."""

    def stream(self, prompt_ids: Sequence[int], *, max_new_tokens: int, **_: object):  # type: ignore[no-untyped-def]
        yield from range(max_new_tokens)


def test_worker_makes_synthetic_prompts_of_the_lengths_asked_for() -> None:
    model = CountingModel({}, n_ctx=32)
    said, left_out = run_plan(model, (), PLAN | {"synthetic": [[16, 4], [3, 9]]})
    runs = [event["run"] for event in said if event["event"] == "run"]
    assert left_out == 0
    assert [(r["prompt"], r["n_prompt"], len(r["itl_ms"]) + 1) for r in runs[:2]] == [(0, 16, 4), (1, 3, 9)]


@pytest.mark.parametrize(
    ("questions", "synthetic", "message"),
    [
        (("q",), [], r"no prompt leaves room for 5 tokens in a context of 8 \(shortest prompt: 6"),
        ((), [], r"no prompt leaves room for 5 tokens in a context of 8 \(shortest prompt: 0"),
        ((), [[6, 3]], "6 prompt tokens and 3 generated ones do not fit a context of 8"),
    ],
)
def test_worker_refuses_what_does_not_fit(questions: tuple[str, ...], synthetic: list[Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        worker.cases_of(FakeModel({}, n_ctx=8), prompts(*questions), PLAN | {"synthetic": synthetic})


class EarlyStop(FakeModel):
    def stream(self, prompt_ids: Sequence[int], **_: object):  # type: ignore[no-untyped-def]
        yield 1


def test_worker_refuses_a_runtime_that_stops_early() -> None:
    with pytest.raises(RuntimeFault, match="1 tokens instead of 5"):
        run_plan(EarlyStop({}), ("q",), PLAN)


def test_summary_by_hand() -> None:
    runs = [Run(0, 0, 10, 6.0, 5.0, [2.0, 4.0], 8.0, 12.0), Run(1, 1, 30, 16.0, 15.0, [2.0, 2.0], 24.0, 4.0)]
    measurement = Measurement(
        [50.0, 8.0, 10.0], runs, 1000, 77, n_gen=3, left_out=0, fresh_load_ms=[40.0, 70.0], peak_pss_bytes=500,
        bundle_bytes=78, energy={"joules": 12.0}, watched={"steal_share": 0.0, "others_share": None},
    )  # fmt: skip
    expected = {
        "load_ms": 50.0,  # the median of 40, 50, 70
        "ttft_ms_p50": 11.0,
        "ttft_ms_p95": 15.5,
        "itl_ms_p50": 2.0,
        "itl_ms_p90": np.quantile([2, 2, 2, 4], 0.90),
        "itl_ms_p95": np.quantile([2, 2, 2, 4], 0.95),
        "itl_ms_p99": np.quantile([2, 2, 2, 4], 0.99),
        "e2e_ms_p50": (12 + 20) / 2,
        "reload_ms_p50": 9.0,
        "prompt_tokens_per_s": 40 / 20 * 1e3,
        "decode_tokens_per_s": 4 / 10 * 1e3,
        "cpu_s_per_token": 0.016 / 4,
        "cpu_s_per_prompt_token": 0.032 / 40,
        "energy_j_per_token": 12 / 6,
        "peak_rss_bytes": 1000,
        "peak_pss_bytes": 500,
        "size_bytes": 77,
        "bundle_bytes": 78,
    }
    assert {name: measurement.flat()[name] for name in expected} == pytest.approx(expected)
    assert measurement.mean_position() == (11 + 12 + 31 + 32) / 4  # tokens 2 and 3 of both answers
    noise = measurement.noise()
    assert (noise["noisy"], noise["median_spread"]) == (True, 0.5)  # medians 3 and 2
    content = measurement.to_json()
    assert content["runs"][0]["itl_ms"] == [2.0, 4.0]
    assert content["summary"]["reload_ms"]["mean"] == 9.0
    json.dumps(content, allow_nan=False)


def test_synthetic_lengths_are_summed_up_apart() -> None:
    runs = [Run(0, 0, 4, 1.0, 1.0, [1.0]), Run(1, 0, 8, 4.0, 4.0, [2.0, 2.0])]
    measurement = Measurement([1.0], runs, 1, 1, n_gen=3, left_out=0, synthetic=[[4, 2], [8, 3]])
    lengths = measurement.summary()["by_length"]
    assert [(each["n_prompt"], each["n_gen"], each["e2e_ms"]["p50"]) for each in lengths] == [(4, 2, 2.0), (8, 3, 8.0)]
    assert [each["prompt_tokens_per_s"] for each in lengths] == [4000.0, 2000.0]


def test_zero_samples_are_not_numbers() -> None:
    nothing = Measurement([], [], 0, 5, n_gen=2, left_out=0, complete=False, failure="it crashed")
    assert nothing.flat() == {"peak_rss_bytes": 0.0, "size_bytes": 5.0}
    assert nothing.summary()["ttft_ms"] is None
    assert nothing.noise()["noisy"] is False
    json.dumps(nothing.to_json(), allow_nan=False)


LOADED = (
    "order = json.loads(sys.stdin.readline())\n"
    "def say(event, **content): print(json.dumps({'event': event, **content}), flush=True)\n"
    "say('loaded', load_ms=1.0, size_bytes=1, n_gen=3, left_out=0, host={'asked': [p['prompt'][0]['content'] for p in "
    "order['prompts']]})\n"
)
RAN = (
    LOADED
    + "say('run', run=dict(prompt=0, repetition=0, n_prompt=1, ttft_ms=1.0, prefill_ms=1.0, itl_ms=[1.0, 2.0]))\n"
)
ANSWERED = LOADED + "say('answer', answer=dict(text='a', finish='stop', n_prompt=1, n_new=1))\n"
DEATHS = [
    ("os.kill(os.getpid(), signal.SIGABRT)", RuntimeFault, "model.gguf: the runtime was killed by SIGABRT"),
    ("os.kill(os.getpid(), signal.SIGSEGV)", RuntimeFault, "killed by SIGSEGV"),
    ("print('ggml: assertion failed', file=sys.stderr); sys.exit(7)", RuntimeFault, "code 7\n  ggml: asser"),
    pytest.param(
        "time.sleep(600)",
        RuntimeFault,
        r"model.gguf: the runtime said nothing for 4 s; it hangs",
        marks=pytest.mark.slow,
    ),
    ("pass", RuntimeFault, "ended with exit code 0"),
    ('print(\'{"event": "error", "kind": "ModelError", "message": "bad magic"}\')', ModelError, "bad magic"),
    ("print('oops')", RuntimeFault, "'oops.*not JSON"),
]


def examples(count: int = 9) -> list[Example]:
    return [Example(({"role": "user", "content": str(i)},), "a") for i in range(count)]


def child(code: str) -> dict[str, Any]:
    """Arguments for a child that runs `code`."""
    return {
        "command": [sys.executable, "-c", "import json, os, signal, sys, time\n" + code],
        "silence_s": 60.0 if "sleep" not in code else 4.0,
        "log": silent_log(),
    }


def run_child(code: str, **plan: Any) -> Measurement:
    asked = LatencyPlan(**{"prompts": 3, "cold_loads": 1, **plan})
    return measure(Path("model.gguf"), examples(), asked, Setup(), **child(code))


@pytest.mark.parametrize(("code", "error", "message"), DEATHS)
def test_child_that_fails(code: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        run_child(code)
    assert not isinstance(raised.value, RunCutShort)


@pytest.mark.parametrize(("code", "error", "message"), [row for row in DEATHS if row[1] is RuntimeFault])
def test_a_run_that_dies_midway_keeps_its_samples(code: str, error: type[Exception], message: str) -> None:
    """The text of the code in front of the death decides nothing but `silence_s`."""
    with pytest.raises(RunCutShort, match=message) as raised:
        run_child(RAN + code)
    partial = raised.value.partial
    assert (partial.complete, len(partial.runs), partial.summary()["itl_ms"]["p50"]) == (False, 1, 1.5)
    assert partial.failure == str(raised.value)
    json.dumps(partial.to_json(), allow_nan=False)


@pytest.mark.parametrize(("code", "error", "message"), [row for row in DEATHS if row[1] is RuntimeFault][:4])
@pytest.mark.parametrize("answered", [False, True])
def test_answers_of_a_child_that_dies(answered: bool, code: str, error: type[Exception], message: str) -> None:
    code = (ANSWERED if answered else LOADED) + code
    with pytest.raises(error, match=message) as raised:
        evaluate_file(Path("model.gguf"), examples(), Scoring(), Setup(), max_new_tokens=4, **child(code))
    assert isinstance(raised.value, RunCutShort) == answered
    if isinstance(raised.value, RunCutShort):
        assert (raised.value.partial.n, raised.value.partial.values()) == (1, {"exact_match": 1.0})


def test_child_gets_prompts_spread_over_the_examples() -> None:
    code = LOADED + "say('measured', load_ms=[1.0], peak_rss_bytes=1)\nsay('done')"
    assert run_child(code).host["asked"] == ["0", "4", "8"]
    assert run_child(code, prompts=1).host["asked"] == ["0"]
    assert len(run_child(code, prompts=20).host["asked"]) == 9
    assert run_child(code, cold_loads=3).fresh_load_ms == [1.0, 1.0]


@pytest.mark.parametrize(
    "fields",
    [
        {"n_gen": 1}, {"repetitions": 0}, {"prompts": 0}, {"cold_loads": 0}, {"synthetic": ((0, 4),)},
        {"synthetic": ((4, 1),)},
    ],
)  # fmt: skip
def test_a_plan_that_measures_nothing(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="latency needs"):
        LatencyPlan(**fields)


def test_events_are_not_mixed_with_what_the_backend_prints() -> None:
    code = (
        "import os, sys\nfrom edgeft.bench.worker import _private_stdout\nevents = _private_stdout()\n"
        "os.write(1, b'noise\\n')\nprint('event', file=events, flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"event\n", b"noise\n")


def test_definitions_and_docs_cover_the_summary() -> None:
    run = Run(0, 0, 1, 1.0, 1.0, [1.0])
    summary = set(Measurement([1.0], [run], 1, 1, n_gen=2, left_out=0).summary()) - {"n_prompt", "by_length"}
    assert summary <= set(latency.DEFINITIONS)
    documented = DOCS.read_text(encoding="utf-8")
    assert [name for name in summary if f"`{name}`" not in documented] == []
