"""A real run, packed, and run again from its bundle: the same bytes; with other data or another seed, a plain no."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgeft.artifact import sha256_file
from edgeft.bundle.contents import Extras
from edgeft.bundle.layouts import write_layout
from edgeft.bundle.pack import pack
from edgeft.bundle.reproduce import packed_recipe, reproduce
from edgeft.bundle.run import read_run
from edgeft.cli import main
from edgeft.console import silent_log
from edgeft.errors import BundleError, UsageError
from edgeft.interrupts import Interrupted
from edgeft.pipeline import run
from edgeft.recipe_reader import read_recipe
from edgeft.runtime.bundle import Bundle, open_bundle
from edgeft.store import Store
from tests.tiny import make_tiny_llama

pytest.importorskip("torch")
pytest.importorskip("llama_cpp")
pytest.importorskip("onnx")
pytestmark = pytest.mark.slow

RECIPE = """\
name: tiny
seed: 1
model: {base: base}
data: {train: train.jsonl, validation: test.jsonl, test: test.jsonl, max_length: 128}
train: {learning_rate: 1e-2, num_train_epochs: 1, batch_tokens: 128, num_threads: 1}
export: {gguf: [{ftype: Q8_0}], onnx: [{dtype: fp32}, {dtype: int4, layout: transformers.js}]}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    make_tiny_llama(folder / "base")
    for split, words in (("train", ("on", "off", "up", "down")), ("test", ("left", "right"))):
        rows = [
            {"messages": [{"role": "user", "content": f"turn {w}"}, {"role": "assistant", "content": w}]} for w in words
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    run(read_recipe(folder / "recipe.yaml"), Store(folder / "runs"), silent_log(), until="export")
    return folder


@pytest.fixture(scope="module")
def bundle(project: Path) -> Bundle:
    pack(read_run(project / "runs" / "tiny"), project / "tiny.edgeft", Extras())
    return open_bundle(project / "tiny.edgeft", project / "cache")


def paths(project: Path, **changes: Path) -> tuple[str, ...]:
    inputs: dict[str, Any] = {
        "model.base": project / "base",
        "data.train": project / "train.jsonl",
        "data.validation": project / "test.jsonl",
        "data.test": project / "test.jsonl",
    }
    return tuple(f"{key}={path}" for key, path in (inputs | changes).items())


def test_the_bytes_come_out_again(project: Path, bundle: Bundle, tmp_path: Path) -> None:
    recipe = packed_recipe(bundle, project / "recipe.yaml", ())
    found = reproduce(bundle, recipe, tmp_path / "again", silent_log())
    assert found.same
    assert found.changes == ()
    assert set(found.model_files) == {
        "model/tiny-Q8_0.gguf", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"
    }  # fmt: skip
    (made,) = (tmp_path / "again").glob("store/export-*/tiny-Q8_0.gguf")
    assert made.read_bytes() == bundle.model.read_bytes()


def test_inputs_may_lie_elsewhere(project: Path, bundle: Bundle, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(project / "base", moved / "base")
    for split in ("train", "test"):
        shutil.copy(project / f"{split}.jsonl", moved / f"other-{split}.jsonl")
    places = {"model.base": moved / "base", "data.train": moved / "other-train.jsonl"}
    places |= {"data.validation": moved / "other-test.jsonl", "data.test": moved / "other-test.jsonl"}
    recipe = packed_recipe(bundle, None, tuple(f"{key}={path}" for key, path in places.items()))
    assert reproduce(bundle, recipe, tmp_path / "again", silent_log()).same


def test_the_packed_model_answers(project: Path, bundle: Bundle) -> None:
    from edgeft.runtime import load

    with load(bundle.path, n_threads=1) as model, load(bundle.model, n_threads=1) as plain:
        turns = [{"role": "user", "content": "turn on"}]
        assert model.chat(turns, max_new_tokens=4).text == plain.chat(turns, max_new_tokens=4).text


def test_a_packed_onnx_folder_answers_as_the_exported_one(project: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from edgeft.runtime import load

    made = read_run(project / "runs" / "tiny")
    pack(made, tmp_path / "fp32", Extras(file="fp32"), folder=True)
    write_layout(made, "genai", tmp_path / "genai", Extras())
    write_layout(made, "transformers.js", tmp_path / "js", Extras())
    turns = [{"role": "user", "content": "turn on"}]
    answers = []
    for path in (made.stages["export"].path / "fp32", tmp_path / "fp32", tmp_path / "genai", tmp_path / "js"):
        with load(path, n_threads=1) as model:
            answers.append(model.chat(turns, max_new_tokens=4).text)
    assert answers[0] == answers[1] == answers[2]
    assert (tmp_path / "js" / "onnx" / "model_q4.onnx").is_file()


def test_the_adapter_as_a_gguf_lora(project: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    packed = read_run(project / "runs" / "tiny")
    write_layout(packed, "peft", tmp_path / "peft", Extras(base=project / "base"))
    fields = gguf.GGUFReader(tmp_path / "peft" / "tiny-lora.gguf").fields
    assert fields["general.type"].contents() == "adapter"
    assert fields["edgeft.base_sha256"].contents() == sha256_file(project / "base" / "model.safetensors")


def test_another_seed_gives_other_bytes_and_says_where(project: Path, bundle: Bundle, tmp_path: Path) -> None:
    recipe = packed_recipe(bundle, project / "recipe.yaml", ("seed=2",))
    found = reproduce(bundle, recipe, tmp_path / "again", silent_log())
    assert not found.same
    assert found.model_files["model/tiny-Q8_0.gguf"] is False
    assert found.model_files["tokenizer/tokenizer.json"] is True
    assert "seed: 1 → 2" in found.changes
    assert not all(found.files["train"].values())


def test_other_data_is_refused_before_anything_runs(project: Path, bundle: Bundle, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text((project / "train.jsonl").read_text().replace("down", "away"))
    recipe = packed_recipe(bundle, None, paths(project, **{"data.train": other}))
    with pytest.raises(BundleError, match=r"data.train: not what the bundle was made of"):
        reproduce(bundle, recipe, tmp_path / "again", silent_log())
    assert not (tmp_path / "again").exists()


def test_paths_must_be_given(bundle: Bundle, project: Path) -> None:
    with pytest.raises(UsageError, match=r"--set data.train=PATH"):
        packed_recipe(bundle, None, ("model.base=base",))
    assert packed_recipe(bundle, None, paths(project)).train.learning_rate == 1e-2


def test_the_command(
    project: Path,
    bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def words(*more: str | Path) -> tuple[str | Path, ...]:
        return (project / "tiny.edgeft", "--recipe", project / "recipe.yaml", *more)

    def cli(*more: str | Path) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["reproduce", *map(str, words(*more))])
        return int(ended.value.code or 0)

    def cut_short(*_: Any) -> Any:
        raise Interrupted(15, ("export: 1 of 3 files",))

    with monkeypatch.context() as patch:
        patch.setattr("edgeft.pipeline._import_stage", lambda planned: cut_short)
        assert cli("--workdir", tmp_path / "same") == 143
        said = capsys.readouterr().err.splitlines()
    assert said[-2].startswith("interrupted; kept: ")
    assert said[-1] == f"to go on: edgeft reproduce {shlex.join(map(str, words('--workdir', tmp_path / 'same')))}"
    assert cli("--workdir", tmp_path / "same", "--set", "seed=2") == 2  # another run
    assert "is not this reproduction cut short" in capsys.readouterr().err
    assert cli("--workdir", tmp_path / "same") == 0
    assert "model/tiny-Q8_0.gguf             same" in capsys.readouterr().out
    assert cli("--workdir", tmp_path / "same") == 2  # ended: nothing would be made
    assert "is not empty" in capsys.readouterr().err
    assert cli("--workdir", tmp_path / "other", "--set", "seed=2", "--json") == 3
    said = capsys.readouterr()
    assert json.loads(said.out)["same"] is False
    assert "not as in the first run: seed: 1 → 2" in said.err
