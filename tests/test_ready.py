"""What is looked at before a run makes anything: packages, room on the disk, a GPU, answers that will be cut."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from edgeft.artifact import Artifact, write_manifest
from edgeft.errors import MissingExtra, RecipeError
from edgeft.pipeline import inspect
from edgeft.preflight import ready
from edgeft.preflight.answers import foresee_cut_answers
from edgeft.preflight.ready import NotReady, check_ready, missing_extras
from edgeft.recipe import Recipe
from edgeft.recipe_reader import read_recipe
from edgeft.store import Store

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "base").mkdir()
    config = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 384}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    header = json.dumps({"w": {"dtype": "F32", "shape": [1000, 1000], "data_offsets": [0, 4_000_000]}}).encode()
    (tmp_path / "base" / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    for name in ("train", "validation", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "recipe.yaml").write_text(
        "name: t\nmodel: {base: base}\n"
        "data: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}\n"
        "train: {torch_dtype: float32, optim: adamw_8bit}\n"
        "gate:\n  exact_match: '>= 0.9'\n"
    )
    return read_recipe(tmp_path / "recipe.yaml")


def test_all_that_is_missing_is_named_at_once(recipe: Recipe, tmp_path: Path) -> None:
    states = inspect(recipe, Store(tmp_path / "runs"))
    said = missing_extras(states, found=lambda name: name in ("torch", "transformers", "sklearn"))
    assert 'pip install "edgeft[train,gguf]"' in said
    assert "(peft, gguf, llama_cpp)" in said
    assert said.startswith("the stages data, train, merge, export, parity, baseline, bench, gate, report need")
    assert missing_extras(states, found=lambda name: True) == ""
    assert "data" in missing_extras(states[:1], found=lambda name: False)


def test_what_stands_against_a_run(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = inspect(recipe, Store(tmp_path / "runs"))
    monkeypatch.setattr(ready, "missing_extras", lambda todo: "")
    monkeypatch.setattr(ready, "_has_gpu", lambda: False)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9e9, 8e9, 1_000_000))
    with pytest.raises(NotReady) as stopped:
        check_ready(recipe, states, tmp_path / "runs")
    lines = str(stopped.value).splitlines()
    assert "the run writes about" in lines[0]
    assert "1 MB are free there" in lines[0]
    assert lines[1:] == [
        "train.optim: adamw_8bit needs a GPU, and there is none here; set train.optim: adamw", "nothing was run"
    ]  # fmt: skip
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9e9, 0, 9e9))
    monkeypatch.setattr(ready, "_has_gpu", lambda: True)
    check_ready(recipe, states, tmp_path / "runs")
    monkeypatch.setattr(ready, "missing_extras", lambda todo: "the stage train needs torch")
    with pytest.raises(MissingExtra, match="needs torch"):
        check_ready(recipe, states, tmp_path / "runs")


@pytest.mark.parametrize(
    ("lengths", "words", "stops"),
    [
        ({"9": 100}, [], False),
        ({"128": 100}, [], False),  # as long as the limit
        ({"9": 95, "129": 5}, ["5 of 100 test answers are longer than bench.max_new_tokens (128)", "129"], False),
        ({"9": 80, "200": 20}, ["20 of 100", "recipe.yaml:6: gate.exact_match", "At most 0.800 can be right"], True),
    ],
)
def test_answers_that_will_be_cut(
    recipe: Recipe, tmp_path: Path, lengths: dict[str, int], words: list[str], stops: bool
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps({"test": {"answer_lengths": lengths}}))
    data: Artifact = write_manifest(folder, "data", "0" * 64, {})
    said: list[str] = []
    if stops:
        with pytest.raises(RecipeError) as stopped:
            foresee_cut_answers(recipe, data, said.append)
        said = [str(stopped.value)]
    else:
        foresee_cut_answers(recipe, data, said.append)
    assert len(said) == bool(words)
    for word in words:
        assert word in said[0]
