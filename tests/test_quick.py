"""`edgeft run --quick`: little of each, and nothing that the full run could take for its own."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgeft.pipeline import inspect
from edgeft.quick import quick
from edgeft.recipe import Recipe
from edgeft.recipe_reader import read_recipe
from edgeft.store import Store
from tests.tiny import make_tiny_llama

SHARED = {"data", "train", "merge"}


def written(folder: Path, **sections: Any) -> Recipe:
    make_tiny_llama(folder / "base")
    line = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    for name in ("train", "validation", "test"):
        (folder / f"{name}.jsonl").write_text(line + "\n")
    content = {
        "name": "t",
        "model": {"base": "base"},
        "data": {name: f"{name}.jsonl" for name in ("train", "validation", "test")},
        "train": {"torch_dtype": "float32"},
        **sections,
    }
    (folder / "recipe.yaml").write_text(json.dumps(content))
    return read_recipe(folder / "recipe.yaml")


def keys(recipe: Recipe, folder: Path) -> dict[str, str]:
    return {state.planned.stage: state.planned.key for state in inspect(recipe, Store(folder / "runs"))}


def test_training_is_shared_and_nothing_else(tmp_path: Path) -> None:
    recipe = written(tmp_path, export={"gguf": [{"ftype": "F16"}, {"ftype": "Q4_K_M"}]})
    full, short = keys(recipe, tmp_path), keys(quick(recipe), tmp_path)
    assert list(full) == list(short)
    assert {stage for stage in full if full[stage] == short[stage]} == SHARED
    assert quick(recipe).name == "t-quick"


@pytest.mark.parametrize(
    ("export", "gguf", "onnx"),
    [
        ({"gguf": [{"ftype": "F16"}, {"ftype": "Q8_0"}]}, ["Q8_0"], []),
        ({"gguf": [{"ftype": "F16"}, {"ftype": "Q8_0"}], "ship": "F16"}, ["F16"], []),
        ({"gguf": [{"ftype": "F16"}, {"ftype": "Q8_0"}], "onnx": [{"dtype": "fp32"}, {"dtype": "int4"}],
          "ship": "int4-32"}, ["Q8_0"], ["int4-32"]),
    ],
)  # fmt: skip
def test_what_ships_is_made(tmp_path: Path, export: dict[str, Any], gguf: list[str], onnx: list[str]) -> None:
    recipe = written(tmp_path, export=export)
    made = quick(recipe).export
    assert [entry.ftype for entry in made.gguf] == gguf
    assert [entry.name for entry in made.onnx] == onnx
    assert made.shipped == recipe.export.shipped


@pytest.mark.parametrize(
    ("metric", "kept"),
    [
        ("exact_match", True),
        ("exact_match_drop", False),
        ("exact_match_gain", False),
        ("size_bytes", True),
        ("t-Q4_K_M/size_bytes", True),
        ("t-F16/size_bytes", False),
    ],
)
def test_budgets_that_could_not_be_met_are_left_out(tmp_path: Path, metric: str, kept: bool) -> None:
    recipe = written(
        tmp_path, export={"gguf": [{"ftype": "F16"}, {"ftype": "Q4_K_M"}]}, gate={metric: ">= 0", "itl_ms_p50": "<= 9"}
    )
    assert list(quick(recipe).gate) == [*([metric] if kept else []), "itl_ms_p50"]


def test_what_is_little_already_stays(tmp_path: Path) -> None:
    recipe = written(tmp_path, bench={"limit": 7, "latency": {"prompts": 1}}, parity={"prompts": 2, "n_gen": 3})
    short = quick(recipe)
    assert (short.bench.limit, short.bench.latency.prompts) == (7, 1)
    assert (short.parity.prompts, short.parity.n_gen) == (2, 3)
    assert not short.bench.baselines
