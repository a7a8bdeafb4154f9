"""Predictions: shapes against transformers, tokens against the prepared data, costs that move the right way."""

import json
from pathlib import Path

import pytest

from edgeft.console import silent_log
from edgeft.errors import ModelError
from edgeft.pipeline import inspect, run
from edgeft.plan import STAGES
from edgeft.preflight import BITS_PER_WEIGHT, COSTS, Estimate, estimate, read_shape
from edgeft.recipe_reader import read_recipe
from edgeft.sections import Ftype
from edgeft.store import Store
from tests.tiny import make_tiny_llama

RECIPE = """\
name: demo
model: {base: base}
data: {train: train.jsonl, validation: test.jsonl, test: test.jsonl}
train: {num_train_epochs: 2}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("project")
    make_tiny_llama(folder / "base")
    turns = [{"role": "user", "content": "turn on the light"}, {"role": "assistant", "content": "on"}]
    for name, count in (("train.jsonl", 1000), ("test.jsonl", 100)):
        (folder / name).write_text((json.dumps({"messages": turns}) + "\n") * count)
    (folder / "raw").mkdir()
    (folder / "raw" / "text.txt").write_text("x" * 600_000)
    (folder / "make.py").write_text("")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def costs(folder: Path, *overrides: str) -> dict[str, Estimate]:
    recipe = read_recipe(folder / "recipe.yaml", overrides)
    return estimate(recipe, inspect(recipe, Store(folder / "runs")))


def test_the_shape_is_the_models(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    shape = read_shape(folder / "base")
    assert shape.n_params == model.num_parameters()
    assert (shape.hidden_size, shape.num_hidden_layers) == (64, 2)
    assert shape.vocab_size == model.config.vocab_size


@pytest.mark.parametrize("content", [None, "{", "[]", '{"hidden_size": 1}'])
def test_a_folder_that_is_no_model(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError):
        read_shape(tmp_path)


@pytest.mark.parametrize(
    ("override", "stage", "what", "factor"),
    [
        ("train.num_train_epochs=200", "train", "minutes", 2.0),
        ("train.method=full", "train", "disk_bytes", 1.5),
        ("train.batch_tokens=81920", "train", "ram_bytes", 1.5),
        ("bench.latency.repetitions=5000", "bench", "minutes", 10.0),
    ],
)
def test_more_work_costs_more(folder: Path, override: str, stage: str, what: str, factor: float) -> None:
    before, after = getattr(costs(folder)[stage], what), getattr(costs(folder, override)[stage], what)
    assert after > factor * before


def test_sizes_on_disk(folder: Path) -> None:
    n_params = read_shape(folder / "base").n_params
    assert costs(folder)["merge"].disk_bytes == 4 * n_params
    assert costs(folder, "merge.dtype=bfloat16")["merge"].disk_bytes == 2 * n_params
    assert costs(folder, "export.gguf=[{ftype: Q8_0}]")["export"].disk_bytes == n_params * 34 / 32  # ggml's block


def test_data_from_a_script_is_guessed_from_its_inputs(folder: Path) -> None:
    known = costs(folder, "data.prepare={script: make.py, inputs: [raw]}")
    assert known["train"].minutes is not None
    unknown = costs(folder, "data.prepare={script: make.py}")
    assert unknown["train"].minutes is None
    assert unknown["merge"].minutes is not None


def test_the_guess_is_replaced_by_the_count(folder: Path, tmp_path: Path) -> None:
    recipe = read_recipe(folder / "recipe.yaml")
    guessed = costs(folder)["train"].minutes
    counts = {"train_tokens": 1e9, "test_examples": 100.0, "test_tokens": 900.0, "validation_tokens": 900.0}

    def data(recipe: object, inputs: object, out: Path, log: object) -> dict[str, float]:
        (out / "train.jsonl").write_text("")
        return counts

    run(recipe, Store(tmp_path), silent_log(), until="data", stages={"data": data})
    exact = estimate(recipe, inspect(recipe, Store(tmp_path)))
    assert "data" not in exact
    assert guessed is not None
    assert exact["train"].minutes is not None
    assert exact["train"].minutes > 100 * guessed


def test_every_stage_and_every_type_has_a_cost() -> None:
    assert set(COSTS) == set(STAGES) - {"pretrain"}
    assert set(BITS_PER_WEIGHT) == set(Ftype.__args__)
