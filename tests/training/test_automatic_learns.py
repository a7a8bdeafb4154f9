"""`hyperparameters: auto` judged by what it teaches, not by its formula: learning curves of real trainings."""

import json
import random
from pathlib import Path

import pytest

from edgeft.artifact import Artifact, FileRecord
from edgeft.console import silent_log
from edgeft.recipe_reader import read_recipe
from edgeft.report.course import training_advice
from edgeft.stages import data, train
from tests.tiny import make_tiny_llama

KINDS = {"card": "where is my {} card", "loan": "i want a loan for {}", "rate": "what is the {} rate now"}
THINGS = "amber basil cedar dune ember fjord grove haven islet jasper kelp lotus maple nectar onyx pearl".split()


def write_rows(folder: Path, **counts: int) -> None:
    rng = random.Random(7)
    for name, count in counts.items():
        rows = []
        for at in range(count):
            kind = sorted(KINDS)[at % 3]
            asked = KINDS[kind].format(" ".join(rng.sample(THINGS, 2)))
            rows.append([{"role": "user", "content": asked}, {"role": "assistant", "content": kind}])
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))


@pytest.mark.parametrize("n_train", [24, 90])
def test_a_few_examples_are_learned_and_then_it_stops(tmp_path: Path, n_train: int) -> None:
    """From random weights: the validation loss falls to a small share of its first value, the course ends flat (by the
    report's own words neither under-trained nor overfitted), and what is handed on is the best state."""
    make_tiny_llama(tmp_path / "base")
    write_rows(tmp_path, train=n_train, validation=12, test=3)
    content = {
        "name": "t",
        "model": {"base": "base"},
        "data": {"train": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl", "max_length": 128,
                 "allow": ["E503"]},
        "train": {"hyperparameters": "auto", "method": "full", "num_threads": 1, "torch_dtype": "float32"},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    recipe = read_recipe(tmp_path / "recipe.yaml")
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    metrics = data.run(recipe, {}, prepared, silent_log())
    files = {str(f.relative_to(prepared)): FileRecord(f.stat().st_size, "") for f in prepared.rglob("*") if f.is_file()}
    out = tmp_path / "train"
    out.mkdir()
    made = train.run(recipe, {"data": Artifact(prepared, "data", "key", files, metrics)}, out, silent_log())
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    evaluations = [row["eval_loss"] for row in rows if "eval_loss" in row]
    assert evaluations[0] / min(evaluations) > 20, evaluations
    assert made["eval_loss"] == min(evaluations)
    kept = [*evaluations[: evaluations.index(min(evaluations)) + 1]]
    assert training_advice(kept) == ""
