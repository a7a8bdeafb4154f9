"""A real file in llama.cpp: bench, its answers against transformers, and files that cannot be run."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgeft.artifact import write_manifest
from edgeft.bench.baseline import save_baseline
from edgeft.bench.examples import Example
from edgeft.bench.file import BenchResult, BenchSettings, bench_file
from edgeft.bench.gate import judge_folder
from edgeft.bench.latency import LatencyPlan
from edgeft.console import silent_log
from edgeft.errors import ArtifactError, GateFailed, ModelError, RuntimeFault
from edgeft.export.gguf.write import write_gguf
from edgeft.recipe import Recipe
from edgeft.stages import bench, gate, report
from tests.tiny import make_tiny_llama

QUESTIONS = ("turn on the light", "set a timer", "what is the weather", "add milk to the list")
LATENCY = LatencyPlan(prompts=3, n_gen=4, repetitions=2, warmup=1, reloads=1, cold_loads=2)
METRICS = ("exact_match", "perplexity", "ece")
SETTINGS = BenchSettings(metrics=METRICS, max_new_tokens=12, n_ctx=128, n_threads=1, latency=LATENCY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model folder and its F32 file."""
    folder = tmp_path_factory.mktemp("file")
    make_tiny_llama(folder / "model")
    (folder / "export").mkdir()
    file = folder / "export" / "tiny-F32.gguf"
    write_gguf(folder / "model", file, ftype="F32", name="tiny", provenance={}, log=silent_log())
    return folder


@pytest.fixture(scope="module")
def examples(folder: Path) -> list[Example]:
    """Questions whose references are transformers' own greedy answers; the last one is made wrong."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    examples = []
    for question in QUESTIONS:
        prompt = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            output = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        examples.append(Example(tuple(prompt), tokenizer.decode(output, skip_special_tokens=True)))
    return [*examples[:-1], Example(examples[-1].prompt, "something else")]


@pytest.fixture(scope="module")
def result(folder: Path, examples: list[Example]) -> BenchResult:
    return bench_file(folder / "export" / "tiny-F32.gguf", examples, SETTINGS, log=silent_log())


def test_answers_are_those_of_transformers(result: BenchResult) -> None:
    assert result.evaluation.scores[0].outcomes == (1, 1, 1, 0)
    assert result.flat()["exact_match"] == 0.75


def test_perplexity_is_that_of_transformers(result: BenchResult, folder: Path, examples: list[Example]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_end|>")]
    nll: list[float] = []
    for example in examples:
        whole = [*example.prompt, {"role": "assistant", "content": example.answer}]
        ids = tokenizer.apply_chat_template(whole, return_dict=False)
        start = len(tokenizer.apply_chat_template(list(example.prompt), add_generation_prompt=True, return_dict=False))
        stop = ids.index(tokenizer.convert_tokens_to_ids("<|im_end|>"), start)
        with torch.inference_mode():
            logs = model(torch.tensor([ids[:stop]])).logits[0].double().log_softmax(-1)
        nll += [-logs[place - 1, ids[place]].item() for place in range(start, stop)]
        nll.append(-logs[stop - 1, ends].logsumexp(0).item())
    score = next(score for score in result.evaluation.scores if score.metric == "perplexity")
    assert score.detail["tokens"] == len(nll)
    assert score.value == pytest.approx(np.exp(np.mean(nll)), rel=5e-3)
    confidences = [answer.confidence for answer in result.evaluation.answers]
    assert all(confidence is not None and 0 < confidence < 1 for confidence in confidences)


def test_latency_is_counted_in_a_process_without_torch(result: BenchResult, folder: Path) -> None:
    measured = result.measurement
    assert [(run.prompt, run.repetition, len(run.itl_ms)) for run in measured.runs] == [
        (prompt, repetition, 3) for repetition in range(2) for prompt in range(3)
    ]
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    prompt = [{"role": "user", "content": QUESTIONS[0]}]
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    assert measured.runs[0].n_prompt == len(ids)
    assert measured.size_bytes == (folder / "export" / "tiny-F32.gguf").stat().st_size
    assert (len(measured.load_ms), len(measured.fresh_load_ms)) == (2, 1)
    assert measured.page_cache["evicted"] == hasattr(os, "posix_fadvise")
    assert measured.flat()["cpu_s_per_token"] > 0
    assert 10e6 < measured.peak_rss_bytes < 200e6  # torch alone takes more
    assert measured.host["n_threads"] == 1
    assert "llama-cpp-python" in measured.host["backend"]


def test_a_missing_file(tmp_path: Path, examples: list[Example]) -> None:
    with pytest.raises(ModelError, match=r"nothing.gguf: no such file"):
        bench_file(tmp_path / "nothing.gguf", examples, SETTINGS, log=silent_log())


@pytest.mark.parametrize("cut", [0, 3, 100, 20_000])
def test_a_truncated_file(tmp_path: Path, folder: Path, examples: list[Example], cut: int) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes((folder / "export" / "tiny-F32.gguf").read_bytes()[:cut])
    with pytest.raises((ModelError, RuntimeFault), match=r"cut\.gguf"):
        bench_file(path, examples, SETTINGS, log=silent_log())


def test_the_stages_from_file_to_report(folder: Path, examples: list[Example], tmp_path: Path) -> None:
    inputs = {}
    lines = [json.dumps({"messages": [*e.prompt, {"role": "assistant", "content": e.answer}]}) for e in examples]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test.jsonl").write_text("\n".join(lines))
    size = (folder / "export" / "tiny-F32.gguf").stat().st_size
    (folder / "export" / "copy.gguf").write_bytes((folder / "export" / "tiny-F32.gguf").read_bytes())
    entry = {"file": "tiny-F32.gguf", "format": "gguf", "ftype": "F32", "bytes": size}
    copy = {"file": "copy.gguf", "format": "gguf", "ftype": "F16", "bytes": size}
    (folder / "export" / "files.json").write_text(json.dumps([copy, entry]))
    (tmp_path / "export").symlink_to(folder / "export")
    rows = [{"form": "tiny-F32", "ok": True, "kl_mean": 0.001}]
    for stage, content in (("parity", {"rows": rows}), ("baseline", {"metrics": [], "forms": []})):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / f"{stage}.json").write_text(json.dumps(content))
    for stage in ("data", "export", "parity", "baseline"):
        inputs[stage] = write_manifest(tmp_path / stage, stage, stage, {"kl_mean": 0.001})
    recipe = _recipe({"exact_match": ">= 0.70", "kl_mean": "<= 0.01", "exact_match_drop": "<= 1"})

    (tmp_path / "bench").mkdir()
    metrics = bench.run(recipe, inputs, tmp_path / "bench", silent_log())
    assert metrics["exact_match"] == 0.75
    inputs["bench"] = write_manifest(tmp_path / "bench", "bench", "bench", metrics)
    (other,) = json.loads((tmp_path / "bench" / "others.json").read_text())
    assert (other["file"], other["metrics"]["exact_match"]) == ("copy.gguf", 0.75)
    rows = [json.loads(line) for line in (tmp_path / "bench" / "predictions.jsonl").read_text().splitlines()]
    assert [row["outcomes"]["exact_match"] for row in rows] == [1, 1, 1, 0]

    (tmp_path / "gate").mkdir()
    with pytest.raises(GateFailed, match="FAIL: 1 of 3 budgets not met: exact_match_drop"):
        gate.run(recipe, inputs, tmp_path / "gate", silent_log())
    inputs["gate"] = write_manifest(tmp_path / "gate", "gate", "gate", {})
    passing = {"exact_match": ">= 0.70", "kl_mean": "<= 0.01", "copy/exact_match": ">= 0.70"}
    passing |= {"tiny-F32/size_bytes": "<= 8MB", "tiny-F32/kl_mean": "<= 0.01"}
    (tmp_path / "passed").mkdir()
    assert gate.run(_recipe(passing), inputs, tmp_path / "passed", silent_log()) == {"passed": 1.0}
    for path in (tmp_path, tmp_path / "bench", tmp_path / "bench" / "bench.json"):
        assert judge_folder(path, passing).passed
        assert not judge_folder(path, {"kl_mean": "<= 0.0001"}).passed

    host = json.loads((tmp_path / "bench" / "bench.json").read_text())["latency"]["host"]
    save_baseline(tmp_path / "base.json", {"size_bytes": size - 1.0, "exact_match": 0.7}, host, file="before.gguf")
    against = {"size_bytes": "<= baseline", "exact_match": ">= baseline", "baseline": str(tmp_path / "base.json")}
    (tmp_path / "against").mkdir()
    with pytest.raises(GateFailed, match="FAIL: 1 of 2 budgets not met: size_bytes"):
        gate.run(_recipe(against), inputs, tmp_path / "against", silent_log())
    assert judge_folder(tmp_path, {"copy/exact_match": ">= 0.70"}).passed

    (tmp_path / "report").mkdir()
    report.run(recipe, inputs, tmp_path / "report", silent_log())
    text = (tmp_path / "report" / "report.txt").read_text()
    assert text.splitlines()[-1] == "FAIL: 1 of 3 budgets not met: exact_match_drop"
    assert max(map(len, text.splitlines())) <= 80
    assert "copy.gguf" in (tmp_path / "report" / "report.html").read_text()
    assert json.loads((tmp_path / "report" / "report.json").read_text())["verdict"]["passed"] is False


def test_judging_what_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"nothing is measured there \(no bench/bench.json\)"):
        judge_folder(tmp_path, {})
    (tmp_path / "bench.json").write_text("{}")
    with pytest.raises(ArtifactError, match="not a result of edgeft"):
        judge_folder(tmp_path / "bench.json", {})
    (tmp_path / "bench.json").write_text("oops")
    with pytest.raises(ArtifactError, match="not valid JSON"):
        judge_folder(tmp_path, {})


def _recipe(budgets: dict[str, str]) -> Recipe:
    content: dict[str, Any] = {
        "name": "tiny",
        "data": {"train": "t", "validation": "v", "test": "s"},
        "train": {},
        "export": {"gguf": [{"ftype": "F32"}]},
        "bench": {
            "max_new_tokens": 12,
            "n_ctx": 128,
            "n_threads": 1,
            "latency": {"prompts": 2, "n_gen": 4, "repetitions": 1, "warmup": 0},
        },
        "gate": budgets,
    }
    return Recipe.build(content, Path())
