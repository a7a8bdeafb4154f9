"""`edgeft bench` on files: its words, and what is left of a run that the runtime does not survive."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeft.bench.backends import Setup
from edgeft.bench.examples import Example
from edgeft.bench.file import BenchResult, BenchSettings, bench_file
from edgeft.bench.latency import LatencyPlan
from edgeft.cli import main
from edgeft.console import silent_log
from edgeft.errors import RunCutShort, RuntimeFault
from edgeft.export.gguf.write import write_gguf
from edgeft.report.build import build_report
from edgeft.report.terminal import to_terminal
from tests.tiny import make_tiny_llama

CHILD = """
import json, os, signal, sys
order = json.loads(sys.stdin.readline())
def say(event, **content): print(json.dumps({"event": event, **content}), flush=True)
host = {"n_threads": 1, "n_cores": 2, "cpu": "c"}
say("loaded", load_ms=1.0, size_bytes=1, n_gen=3, left_out=0, host=host)
if order["task"] == "speed":
    for i in range(2):
        say("run", run=dict(prompt=0, repetition=i, n_prompt=1, ttft_ms=1.0, prefill_ms=1.0, itl_ms=[1.0, 2.0]))
        if DIES == "speed": os.kill(os.getpid(), signal.SIGSEGV)
    say("measured", load_ms=[1.0], peak_rss_bytes=1)
else:
    for i in range(3):
        if DIES == "answers": os.kill(os.getpid(), signal.SIGABRT)
        say("answer", answer=dict(text="a", finish="stop", n_prompt=1, n_new=1))
        if DIES == "second answer": os.kill(os.getpid(), signal.SIGABRT)
say("done")
"""


@pytest.mark.parametrize(
    ("dies", "name", "n_runs", "n_answers"),
    [("speed", "SIGSEGV", 1, 0), ("answers", "SIGABRT", 2, 0), ("second answer", "SIGABRT", 2, 1)],
)
def test_what_was_measured_before_a_crash_is_kept(
    tmp_path: Path, dies: str, name: str, n_runs: int, n_answers: int
) -> None:
    (tmp_path / "model.gguf").touch()
    examples = [Example(({"role": "user", "content": "q"},), "a")] * 3
    command = [sys.executable, "-c", CHILD.replace("DIES", repr(dies))]
    settings = BenchSettings(latency=LatencyPlan(cold_loads=1))
    with pytest.raises(RunCutShort, match=f"model.gguf: the runtime was killed by {name}") as raised:
        bench_file(tmp_path / "model.gguf", examples, settings, Setup(), command=command, log=silent_log())
    partial = raised.value.partial
    assert isinstance(partial, BenchResult)
    content = json.loads(json.dumps(partial.to_json(), allow_nan=False))
    assert (content["complete"], content["failure"]) == (False, str(raised.value))
    assert (len(content["latency"]["runs"]), content["accuracy"]["n"]) == (n_runs, n_answers)
    assert name in to_terminal(build_report({"bench": content}))


def test_a_runtime_that_dies_at_once_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    command = [sys.executable, "-c", "import os; os.abort()"]
    with pytest.raises(RuntimeFault, match="SIGABRT") as raised:
        bench_file(tmp_path / "model.gguf", [], BenchSettings(), command=command, log=silent_log())
    assert not isinstance(raised.value, RunCutShort)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command")
    make_tiny_llama(folder / "model")
    write_gguf(folder / "model", folder / "tiny.gguf", ftype="F32", name="tiny", provenance={}, log=silent_log())
    (folder / "cut.gguf").write_bytes((folder / "tiny.gguf").read_bytes()[:20_000])
    (folder / "other.gguf").write_bytes((folder / "tiny.gguf").read_bytes().replace(b"llama", b"lamma"))
    (folder / "safe.gguf").write_bytes((folder / "model" / "model.safetensors").read_bytes())
    return folder / "tiny.gguf"


def bench(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(("bench", *words, "--no-roofline", "--cold-loads", "1", "--repetitions", "1"))
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("name", "words", "code", "said"),
    [
        ("tiny.gguf", ["--synthetic", "8x4"], 2, "'8x4' is not two counts of tokens; write them like 128:64"),
        ("tiny.gguf", ["--synthetic", "8:1"], 2, "latency needs at least 1 prompt"),
        ("tiny.gguf", ["--synthetic", "8:4", "--cpus", "0,x"], 2, "'0,x' is not a list of cores"),
        ("tiny.gguf", ["--synthetic", "8:4", "--cpus", "90000"], 2, "may not use core 90000"),
        ("tiny.gguf", ["--synthetic", "8:4", "--backend", "tpu"], 2, "backend tpu: there is no such one"),
        ("tiny.gguf", ["--synthetic", "200:64", "--n-ctx", "64"], 2, "do not fit a context of 64"),
        ("tiny.gguf", ["--synthetic", "8:4", "--save-baseline", "a/b"], 2, "'a/b': not a name for a baseline"),
        ("tiny.gguf", ["--synthetic", "8:4", "--json-schema", "no.json"], 2, "--json-schema no.json: cannot be read"),
        ("tiny.gguf", ["--synthetic", "8:4", "--against", "no.json"], 1, "no.json: cannot be read (No such file"),
        ("tiny.gguf", ["--synthetic", "8:4", "--metric", "ece", "--metric", "bleu"], 2, "unknown metric bleu"),
        ("tiny.gguf", ["--synthetic", "8:4", "--metric", "json_schema_valid"], 2, "needs bench.json_schema"),
        ("cut.gguf", ["--synthetic", "8:4"], 1, "cut.gguf: damaged or incomplete GGUF file"),
        ("other.gguf", ["--synthetic", "8:4"], 1, "other.gguf: "),
        ("safe.gguf", ["--synthetic", "8:4"], 1, "safe.gguf: not a GGUF file"),
        ("nothing.gguf", ["--synthetic", "8:4"], 1, "nothing.gguf: no such file"),
        ("model", ["--synthetic", "8:4"], 1, "export it first (edgeft export), or measure it as it is"),
    ],
)
def test_bad_input(
    file: Path, capsys: pytest.CaptureFixture[str], name: str, words: list[str], code: int, said: str
) -> None:
    assert bench(str(file.parent / name), *words) == code
    assert said in capsys.readouterr().err


def test_speed_alone_of_synthetic_lengths(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    words = ["--synthetic", "8:4", "--synthetic", "16:2", "--n-ctx", "32", "--cpus", "0-0", "--out", str(out)]
    assert bench(str(file), *words) == 0
    assert "time to first token" in capsys.readouterr().out
    content: dict[str, Any] = json.loads(out.read_text())
    assert [(each["n_prompt"], each["n_gen"]) for each in content["latency"]["summary"]["by_length"]] == [
        (8, 4),
        (16, 2),
    ]
    assert content["latency"]["host"]["setup"]["cpus"] == [0]
    assert (content["complete"], content["accuracy"]["scores"]) == (True, [])


def test_accuracy_by_slice_a_baseline_and_answers_in_pairs(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, schema, out, second = (tmp_path / name for name in ("d.jsonl", "s.json", "out.json", "second.json"))
    data.write_text("".join(f"{json.dumps(chat(i) | {'room': 'hall' if i % 2 else 'den'})}\n" for i in range(4)))
    schema.write_text('{"type": "object"}')
    words = [str(file), "--data", str(data), "--prompts", "1", "--n-gen", "2", "--max-new-tokens", "4"]
    words += ["--metric", "exact_match", "--metric", "json_schema_valid", "--json-schema", str(schema)]
    saved = tmp_path / "base.json"
    assert bench(*words, "--slice-by", "room", "--out", str(out), "--save-baseline", str(saved)) == 0
    assert f"baseline saved: {saved}" in capsys.readouterr().err
    content = json.loads(out.read_text())
    (stored,) = json.loads(saved.read_text())["hosts"].values()
    assert stored["metrics"] == content["metrics"]
    tables = content["accuracy"]["slices"]
    assert [(table["metric"], [row["value"] for row in table["rows"]]) for table in tables] == [
        ("exact_match", ["den", "hall"]),
        ("json_schema_valid", ["den", "hall"]),
    ]
    assert bench(*words, "--against", str(out), "--out", str(second)) == 0
    against = json.loads(second.read_text())["against"]
    assert against["what"] == str(out)
    assert [(row["metric"], row["n"], row["p"]) for row in against["rows"]] == [
        ("exact_match", 4, 1.0),
        ("json_schema_valid", 4, 1.0),
    ]
    assert bench(*words, "--against", str(out), "--limit", "3") == 2
    assert "answers to other examples" in capsys.readouterr().err


def chat(place: int) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": f"turn on the light {place}"},
            {"role": "assistant", "content": '{"tool": null}'},
        ]
    }


def test_the_gate_refuses_what_was_not_measured_to_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {"file": "m.gguf", "complete": False, "failure": "killed by SIGSEGV", "metrics": {"size_bytes": 1.0}}
    (tmp_path / "bench.json").write_text(json.dumps(content))
    words = ["gate", str(tmp_path), "--budget", "size_bytes <= 8MB", "--junit", str(tmp_path / "junit.xml")]
    for extra in ([], ["--save-baseline", str(tmp_path / "base.json")]):
        with pytest.raises(SystemExit) as ended:
            main((*words, *extra))
        assert ended.value.code == 1
        assert "not a complete measurement (killed by SIGSEGV); run edgeft bench again" in capsys.readouterr().err
    assert "the run died midway: killed by SIGSEGV" in (tmp_path / "junit.xml").read_text()
    assert not (tmp_path / "base.json").exists()
