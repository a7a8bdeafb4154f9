"""The train stage: objectives, one or several in a row, and what it says about them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edgeft.artifact import Artifact, FileRecord
from edgeft.console import silent_log
from edgeft.errors import TrainingError
from edgeft.recipe import Recipe
from edgeft.recipe_reader import read_recipe
from edgeft.stages import _tasks, data, train
from edgeft.training.batches import TokenSet
from edgeft.training.models import load_model
from edgeft.training.pairs import PairSet
from tests.tiny import make_tiny_llama

COLOURS = ("red", "green", "blue", "black")


def _chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def _pair(question: str, good: str, bad: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": good}],
        "rejected": [{"role": "assistant", "content": bad}],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train-stage")
    make_tiny_llama(folder / "base")
    rows = {
        "train": [_chat(f"colour {i}", COLOURS[i % 4]) for i in range(16)],
        "validation": [_chat(f"colour {i}", COLOURS[i % 4]) for i in range(4)],
        "test": [_chat(f"colour {i}", COLOURS[i % 4]) for i in range(20, 24)],
        "pairs": [_pair(f"say {i}", "yes", "no") for i in range(12)],
        "text": [{"text": f"Paint number {i} is {COLOURS[i % 4]}."} for i in range(8)],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def _recipe(folder: Path, **section: Any) -> Recipe:
    files = {name: f"{name}.jsonl" for name in ("train", "validation", "test", "text")}
    content = {
        "name": "t",
        "model": {"base": "base"},
        "data": {**files, "preference": "pairs.jsonl", "preference_validation": 0.25, "max_length": 64},
        "train": {"num_train_epochs": 2, "batch_tokens": 128, "num_threads": 1, "torch_dtype": "float32", **section},
    }
    path = folder / f"recipe-{abs(hash(json.dumps(content)))}.yaml"
    path.write_text(json.dumps(content))
    return read_recipe(path)


def _prepare(recipe: Recipe, out: Path) -> Artifact:
    out.mkdir()
    metrics = data.run(recipe, {}, out, silent_log())
    files = {str(f.relative_to(out)): FileRecord(f.stat().st_size, "") for f in out.rglob("*") if f.is_file()}
    return Artifact(out, "data", "key", files, metrics)


def _train(recipe: Recipe, prepared: Artifact, out: Path) -> dict[str, float]:
    out.mkdir(exist_ok=True)
    return train.run(recipe, {"data": prepared}, out, silent_log())


STAGES = [
    {"objective": "text", "num_train_epochs": 1},
    {"objective": "sft", "learning_rate": 1e-3},
    {"objective": "dpo", "learning_rate": 1e-3, "beta": 0.5},
]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_stages_in_a_row(folder: Path, tmp_path: Path, method: str) -> None:
    recipe = _recipe(folder, method=method, stages=STAGES)
    prepared = _prepare(recipe, tmp_path / "data")
    assert len(TokenSet.load(prepared.file("tokens-text.npz"))) == 8
    assert len(PairSet.load(prepared.file("pairs-train.npz"))) == 9
    metrics = _train(recipe, prepared, tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert {row["phase"] for row in rows} == {1, 2, 3}
    first_dpo = next(row for row in rows if row["phase"] == 3)
    # Before its first step the policy is its own reference: -log sigmoid(0).
    assert first_dpo["loss"] == pytest.approx(np.log(2), rel=1e-5)
    assert {"preference_accuracy", "reward_margin", "canary_perplexity_before"} <= metrics.keys()
    assert metrics["canary_perplexity_after"] > 0


def test_a_run_stopped_between_stages_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = _recipe(folder, method="full", stages=STAGES)
    prepared = _prepare(recipe, tmp_path / "data")
    _train(recipe, prepared, tmp_path / "whole")

    def power_cut(setting: _tasks.Setting) -> _tasks.Task:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(_tasks.TASKS, "dpo", power_cut)
        with pytest.raises(KeyboardInterrupt):
            _train(recipe, prepared, tmp_path / "cut")
    asked = []
    for name, make in dict(_tasks.TASKS).items():
        monkeypatch.setitem(
            _tasks.TASKS, name, lambda setting, name=name, make=make: (asked.append(name), make(setting))[1]
        )
    _train(recipe, prepared, tmp_path / "cut")
    assert asked == ["dpo"]
    whole, cut = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_the_best_state_by_a_task_metric(folder: Path, tmp_path: Path) -> None:
    recipe = _recipe(
        folder,
        method="full",
        learning_rate=3e-3,
        num_train_epochs=6,
        eval_examples=4,
        metric_for_best_model="exact_match",
    )
    prepared = _prepare(recipe, tmp_path / "data")
    metrics = _train(recipe, prepared, tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    seen = [row["exact_match"] for row in rows if "exact_match" in row]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert len(seen) == 6
    assert metrics["exact_match"] == max(seen)
    assert rows[[row.get("exact_match") for row in rows].index(max(seen))]["step"] == summary["best_step"]


def test_orpo_and_automatic_hyperparameters(folder: Path, tmp_path: Path) -> None:
    recipe = _recipe(folder, objective="orpo", hyperparameters="auto", learning_rate=1e-3)
    prepared = _prepare(recipe, tmp_path / "data")
    metrics = _train(recipe, prepared, tmp_path / "out")
    assert metrics["steps"] >= 1
    assert metrics["train_loss"] < metrics["first_loss"]


def test_a_diverging_run_says_so(folder: Path, tmp_path: Path) -> None:
    recipe = _recipe(folder, method="full", learning_rate=1e30, max_grad_norm=0, warmup_steps=0)
    prepared = _prepare(recipe, tmp_path / "data")
    with pytest.raises(TrainingError, match=r"step \d+ of \d+"):
        _train(recipe, prepared, tmp_path / "out")


def test_an_adapter_that_was_trained_fits_its_base(folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    recipe = _recipe(folder, learning_rate=1e-2)
    prepared = _prepare(recipe, tmp_path / "data")
    _train(recipe, prepared, tmp_path / "out")
    base = load_model(folder / "base")
    ids = torch.arange(5, 20)[None]
    with torch.no_grad():
        before = base(ids).logits
        after = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter")(ids).logits
    assert not torch.allclose(before, after, atol=1e-3)
