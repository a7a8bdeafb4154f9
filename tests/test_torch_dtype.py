"""`torch_dtype: auto` is decided before anything is planned; an explicit slow type is warned of."""

import json
from io import StringIO
from pathlib import Path

import pytest

from edgeft.console import terminal_log
from edgeft.machine.compute_type import ComputeType
from edgeft.pipeline import inspect
from edgeft.plan import plan
from edgeft.preflight.machine import REFERENCE
from edgeft.preflight.slow_type import warn_of_slow_type
from edgeft.recipe import Recipe
from edgeft.store import Store
from edgeft.torch_dtype import SECTIONS, of_this_machine, settled

FLOAT32, BFLOAT16 = ComputeType("float32", "as told"), ComputeType("bfloat16", "as told")
COMPUTING = ("train", "merge", "distill", "recover")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    line = {"messages": [{"role": "user", "content": "light"}, {"role": "assistant", "content": "on"}]}
    for name in ("train", "validation", "test"):
        (folder / f"{name}.jsonl").write_text((json.dumps(line) + "\n") * 200)
    return folder


def build(folder: Path, **train: str) -> Recipe:
    content = {
        "name": "demo",
        "data": {name: f"{name}.jsonl" for name in ("train", "validation", "test")},
        "train": train,
        "distill": {"student": {"num_hidden_layers": 1}},
        "recover": {},
        "export": {"gguf": [{"ftype": "Q4_K_M"}]},
    }
    return Recipe.build(content, folder)


def keys(recipe: Recipe, folder: Path) -> dict[str, str]:
    return {planned.stage: planned.key for planned in plan(recipe, Store(folder / "runs").hashes)}


def test_auto_is_the_default_and_is_replaced_everywhere(folder: Path) -> None:
    recipe, chosen = settled(build(folder), chosen=BFLOAT16)
    assert chosen == BFLOAT16
    assert (recipe.train.torch_dtype, recipe.recover and recipe.recover.torch_dtype) == ("bfloat16", "bfloat16")
    assert recipe.folder == folder
    again = Recipe.build({"name": "base", "pretrain": {"prepare": {"script": "x.py"}}}, folder)
    settled_again, _ = settled(again, chosen=FLOAT32)
    assert settled_again.pretrain is not None
    assert settled_again.pretrain.torch_dtype == "float32"


def test_every_section_with_a_type_is_settled() -> None:
    named = {name for name in Recipe.model_fields if "torch_dtype" in json.dumps(_schema(name))}
    assert named == set(SECTIONS)


def _schema(section: str) -> object:
    schema = Recipe.model_json_schema()
    reference = json.dumps(schema["properties"][section]).partition("#/$defs/")[2].partition('"')[0]
    return schema["$defs"].get(reference, {})


def test_a_type_the_recipe_names_is_left(folder: Path) -> None:
    given = build(folder, torch_dtype="bfloat16")
    recipe, _ = settled(given, chosen=FLOAT32)
    assert (recipe.train.torch_dtype, recipe.recover and recipe.recover.torch_dtype) == ("bfloat16", "float32")
    both, chosen = settled(recipe)
    assert both is recipe
    assert chosen is None


def test_keys_stand_for_the_type_and_not_for_the_word(folder: Path) -> None:
    auto = {kind.dtype: keys(settled(build(folder), chosen=kind)[0], folder) for kind in (FLOAT32, BFLOAT16)}
    for stage in COMPUTING:
        assert auto["float32"][stage] != auto["bfloat16"][stage], stage
    assert auto["float32"]["data"] == auto["bfloat16"]["data"]
    named = settled(build(folder, torch_dtype="float32"), chosen=FLOAT32)[0]
    assert keys(named, folder) == auto["float32"]
    with pytest.raises(ValueError, match=r"train.torch_dtype, recover.torch_dtype: auto has not been decided"):
        keys(build(folder), folder)


def test_the_plan_tells_the_type_of_what_trains(folder: Path) -> None:
    states = inspect(build(folder), Store(folder / "runs"))
    here = of_this_machine().dtype
    assert {state.planned.stage: state.planned.torch_dtype for state in states if state.planned.torch_dtype} == {
        "train": here,
        "distill": here,
        "recover": here,
    }


@pytest.mark.parametrize(
    ("train", "machine", "warned"),
    [
        ({"torch_dtype": "bfloat16"}, FLOAT32, True),
        ({"torch_dtype": "bfloat16"}, BFLOAT16, False),
        ({"torch_dtype": "float32"}, FLOAT32, False),
        ({}, FLOAT32, False),
    ],
)
def test_a_slow_type_is_told_once_with_the_minutes_of_both(
    folder: Path, train: dict[str, str], machine: ComputeType, warned: bool
) -> None:
    recipe, talk = build(folder, **train), StringIO()
    warn_of_slow_type(recipe, lambda: inspect(recipe, Store(folder / "runs")), terminal_log(talk), machine, REFERENCE)
    lines = [line for line in talk.getvalue().splitlines() if line]
    assert len(lines) == int(warned)
    if warned:
        assert "train.torch_dtype: bfloat16 is slow here: about" in lines[0]
        assert lines[0].count(" minutes") == 2
        assert "recover" not in lines[0]


def test_nothing_to_train_is_no_reason_to_warn(folder: Path) -> None:
    recipe, talk = build(folder, torch_dtype="bfloat16"), StringIO()
    warn_of_slow_type(recipe, list, terminal_log(talk), FLOAT32)
    assert talk.getvalue() == ""
