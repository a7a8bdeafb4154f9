"""The measuring process: what it counts, and what becomes of one that crashes, hangs or lies."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edgeft.bench import host, latency, worker
from edgeft.bench.examples import Example
from edgeft.bench.latency import LatencyPlan, Measurement, Run, measure
from edgeft.console import silent_log
from edgeft.errors import ModelError, RuntimeFault, UsageError
from tests.bench.fake_model import FakeModel

PLAN = {"prompts": 2, "n_gen": 5, "repetitions": 3, "warmup": 1, "reloads": 2}


def prompts(*questions: str) -> list[dict[str, object]]:
    return [{"prompt": [{"role": "user", "content": q}], "answer": "", "tools": None} for q in questions]


def test_worker_counts_tokens_runs_and_loads() -> None:
    loaded: list[FakeModel] = []

    def load() -> FakeModel:
        loaded.append(FakeModel({"q": "short", "qq": ""}, n_ctx=12))
        return loaded[-1]

    reported: list[int] = []
    measured = worker.measure_model(load, prompts("q", "qq", "too long a question"), PLAN, reported.append)
    assert measured["left_out"] == 1
    assert [(r["prompt"], r["repetition"]) for r in measured["runs"]] == [(p, r) for r in range(3) for p in (0, 1)]
    assert [r["n_prompt"] for r in measured["runs"][:2]] == [6, 7]
    assert {len(r["itl_ms"]) for r in measured["runs"]} == {4}
    assert all(r["ttft_ms"] >= r["prefill_ms"] for r in measured["runs"])
    assert reported == list(range(1, 9))
    assert len(measured["load_ms"]) == len(loaded) == 3
    assert all(model.closed for model in loaded)
    assert len(loaded[0].streams) == 8
    assert all(stream["ignore_eos"] for stream in loaded[0].streams)
    assert measured["host"] == {"n_threads": 3, "n_ctx": 12}


def test_worker_refuses_prompts_that_never_fit() -> None:
    with pytest.raises(UsageError, match=r"no prompt leaves room for 5 tokens in a context of 8 \(shortest"):
        worker.measure_model(lambda: FakeModel({}, n_ctx=8), prompts("q"), PLAN, lambda done: None)


class EarlyStop(FakeModel):
    def stream(self, prompt_ids: Sequence[int], **_: object):  # type: ignore[no-untyped-def]
        yield 1


def test_worker_refuses_a_runtime_that_stops_early() -> None:
    with pytest.raises(RuntimeFault, match="1 tokens instead of 5"):
        worker.measure_model(lambda: EarlyStop({}), prompts("q"), PLAN, lambda done: None)


def test_summary_by_hand() -> None:
    runs = [Run(0, 0, 10, 6.0, 5.0, [2.0, 4.0]), Run(1, 0, 30, 16.0, 15.0, [2.0, 2.0])]
    measurement = Measurement([50.0, 8.0, 10.0], runs, 1000, 77, n_gen=3, left_out=0)
    flat = measurement.flat()
    assert flat == pytest.approx(
        {
            "load_ms": 50.0,
            "ttft_ms_p50": 11.0,
            "ttft_ms_p95": 15.5,
            "itl_ms_p50": 2.0,
            "itl_ms_p95": np.quantile([2, 2, 2, 4], 0.95),
            "prompt_tokens_per_s": 40 / 20 * 1e3,
            "decode_tokens_per_s": 4 / 10 * 1e3,
            "peak_rss_bytes": 1000,
            "size_bytes": 77,
        }
    )
    content = measurement.to_json()
    assert content["runs"][0]["itl_ms"] == [2.0, 4.0]
    assert content["summary"]["reload_ms"]["mean"] == 9.0
    assert set(content["definitions"]) >= {"load_ms", "ttft_ms", "itl_ms", "peak_rss_bytes"}
    json.dumps(content, allow_nan=False)


def run_child(code: str, plan: LatencyPlan | None = None) -> Measurement:
    examples = [Example(({"role": "user", "content": str(i)},), "a") for i in range(9)]
    return measure(
        Path("model.gguf"),
        examples,
        plan or LatencyPlan(prompts=3),
        n_ctx=64,
        n_threads=None,
        log=silent_log(),
        command=[sys.executable, "-c", "import json, os, signal, sys, time\n" + code],
        silence_s=5.0 if "sleep" not in code else 0.5,
    )


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (
            "os.kill(os.getpid(), signal.SIGABRT)",
            RuntimeFault,
            "model.gguf: the runtime was killed by SIGABRT",
        ),
        ("os.kill(os.getpid(), signal.SIGSEGV)", RuntimeFault, "killed by SIGSEGV while being measured"),
        (
            "print('ggml: assertion failed', file=sys.stderr); sys.exit(7)",
            RuntimeFault,
            "code 7 .*\n  ggml: asser",
        ),
        ("time.sleep(60)", RuntimeFault, r"model.gguf: the runtime said nothing for 0\.5 s .* it hangs"),
        ("pass", RuntimeFault, "ended without a result"),
        (
            "print(json.dumps({'event': 'error', 'kind': 'ModelError', 'message': 'bad magic'}))",
            ModelError,
            "bad magic",
        ),
    ],
)
def test_child_that_fails(code: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run_child(code)


def test_child_gets_prompts_spread_over_the_examples() -> None:
    code = (
        "asked = [p['prompt'][0]['content'] for p in json.load(sys.stdin)['prompts']]\n"
        "m = dict(load_ms=[1.0], runs=[], peak_rss_bytes=1, size_bytes=1, n_gen=2, left_out=0)\n"
        "m['host'] = {'asked': asked}\n"
        "print(json.dumps({'event': 'result', 'measurement': m}))"
    )
    assert run_child(code).host["asked"] == ["0", "4", "8"]
    assert run_child(code, LatencyPlan(prompts=1)).host["asked"] == ["0"]
    assert len(run_child(code, LatencyPlan(prompts=20)).host["asked"]) == 9


@pytest.mark.parametrize("fields", [{"n_gen": 1}, {"repetitions": 0}, {"prompts": 0}])
def test_a_plan_that_measures_nothing(fields: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="latency needs"):
        run_child("pass", LatencyPlan(**fields))


def test_events_are_not_mixed_with_what_the_backend_prints() -> None:
    code = (
        "import os, sys\nfrom edgeft.bench.worker import _private_stdout\nevents = _private_stdout()\n"
        "os.write(1, b'noise\\n')\nprint('event', file=events, flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"event\n", b"noise\n")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_the_parent_is_not_the_childs() -> None:
    ballast = np.ones(40_000_000)  # 320 MB, touched
    code = (
        "import resource; from edgeft.bench.host import peak_rss_bytes\n"
        "print(peak_rss_bytes(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    ours, rusage = map(int, done.stdout.split())
    assert ours < 100e6
    assert rusage > ballast.nbytes  # the trap that `peak_rss_bytes` avoids


def test_host_names_the_machine_but_not_whose() -> None:
    described = host.describe_host()
    assert described["cpu"]
    assert described["n_cores"] >= 1
    assert set(described) == {"cpu", "n_cores", "memory_bytes", "os", "python", "governor"}


def test_definitions_cover_the_summary() -> None:
    run = Run(0, 0, 1, 1.0, 1.0, [1.0])
    summary = Measurement([1.0], [run], 1, 1, n_gen=2, left_out=0).summary()
    assert set(summary) - {"size_bytes", "n_prompt"} <= set(latency.DEFINITIONS)
