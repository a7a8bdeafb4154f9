"""The recover stage: the file that ships holds what training saw, and recipes that cannot have it are refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgeft.artifact import Artifact, write_manifest
from edgeft.console import silent_log
from edgeft.errors import RecipeError
from edgeft.export.folder import open_checkpoint, read_folder
from edgeft.export.gguf.architectures.layout import lay_out
from edgeft.export.gguf.read import GgufFile, open_gguf
from edgeft.plan import steps_of
from edgeft.quant.ggml import GgmlType
from edgeft.quant.grids.fake import round_rows
from edgeft.quant.grids.onnx import MatMulNBits, quantize
from edgeft.quant.imatrix import read_imatrix
from edgeft.recipe import Recipe
from edgeft.recipe_reader import read_recipe
from edgeft.stages import data, export, recover
from tests.tiny import make_tiny_llama

COLOURS = ("red", "green", "blue", "black")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with rows for k-quants, and its data."""
    folder = tmp_path_factory.mktemp("recover-stage")
    make_tiny_llama(folder / "base", hidden_size=256, intermediate_size=256, num_hidden_layers=1, initializer_range=0.1)
    for name, numbers in {"train": range(32), "validation": range(40, 48), "test": range(50, 54)}.items():
        rows = [_chat(f"colour of the kitchen light {i}", COLOURS[i % 4]) for i in numbers]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def make_recipe(
    folder: Path, gguf: list[dict[str, Any]], onnx: Sequence[dict[str, Any]] = (), **recovering: Any
) -> Recipe:
    content = {
        "name": "t",
        "model": {"base": "base"},
        "data": {**{name: f"{name}.jsonl" for name in ("train", "validation", "test")}, "max_length": 64},
        "train": {},
        "recover": {
            "learning_rate": 2e-4,
            "num_train_epochs": 1,
            "batch_tokens": 128,
            "num_threads": 1,
            "torch_dtype": "float32",
            **recovering,
        },
        "export": {"gguf": gguf, "onnx": list(onnx), "calibration_tokens": 512},
    }
    path = folder / f"recipe-{len(list(folder.glob('recipe-*')))}.yaml"
    path.write_text(json.dumps(content))
    return read_recipe(path)


def prepare(recipe: Recipe, folder: Path, out: Path) -> dict[str, Artifact]:
    """What the stages before leave, with the base in the place of a merged model."""
    (out / "data").mkdir(parents=True)
    inputs = {"data": write_manifest(out / "data", "data", "key", data.run(recipe, {}, out / "data", silent_log()))}
    (out / "merge").mkdir()
    for path in (folder / "base").iterdir():
        (out / "merge" / path.name).write_bytes(path.read_bytes())
    (out / "merge/provenance.json").write_text(json.dumps({"base": "base", "edgeft_version": "0", "seed": 1}))
    return inputs | {"merge": write_manifest(out / "merge", "merge", "key", {})}


FILES: list[dict[str, Any]] = [{"ftype": "Q4_0"}, {"ftype": "Q4_K_M", "imatrix": True}, {"ftype": "auto"}]


@pytest.mark.parametrize("entry", FILES, ids=lambda entry: entry["ftype"])
def test_the_file_holds_what_training_saw(folder: Path, tmp_path: Path, entry: dict[str, Any]) -> None:
    """Tensor by tensor, the weights of the trained folder rounded with what the folder says, as ggml reads the file."""
    recipe = make_recipe(folder, [{"ftype": "F16"}, entry])
    inputs = prepare(recipe, folder, tmp_path)
    out = recover_and_export(recipe, inputs, tmp_path, entry["ftype"])
    check_untouched(open_gguf(tmp_path / "export/t-F16.gguf"), inputs["merge"].path)
    file = open_gguf(tmp_path / "export" / f"t-{entry['ftype']}.gguf")
    imatrix = read_imatrix(out / "imatrix.gguf") if entry.get("imatrix") else None
    layout = lay_out(read_folder(out), open_checkpoint(out))
    kinds = {name: GgmlType(tensor.kind) for name, tensor in file.header.tensors.items()}
    if entry["ftype"] == "auto":
        planned = {name: row["kind"] for name, row in json.loads((out / "mix.json").read_text())["tensors"].items()}
        assert planned.items() <= {name: kind.name for name, kind in kinds.items()}.items()
    for rule in layout.rules:
        rows = rule.change(*map(layout.checkpoint.read, rule.sources)).reshape(-1, rule.shape[-1])
        importance = imatrix.importance(rule.name) if imatrix else None
        expected = round_rows(rows, kinds[rule.name], importance)
        np.testing.assert_array_equal(file.read(rule.name).reshape(expected.shape), expected, err_msg=rule.name)


def test_the_folder_holds_what_training_saw(folder: Path, tmp_path: Path) -> None:
    """An ONNX folder is rounded to the nearest of what recovery left, though its method is another."""
    entries = [{"dtype": "int4", "method": "k_quant"}, {"dtype": "int4", "method": "rtn"}]
    recipe = make_recipe(folder, [{"ftype": "F16"}], entries, target="int4-32")
    inputs = prepare(recipe, folder, tmp_path)
    out = recover_and_export(recipe, inputs, tmp_path, "int4-32")
    for name, weights in (("int4-32", out), ("int4-32-rtn", inputs["merge"].path)):
        graph = onnx.load(tmp_path / "export" / name / "model.onnx").graph
        tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        expected = quantize(open_checkpoint(weights).read("model.layers.0.mlp.down_proj.weight"), MatMulNBits(4, 32))
        np.testing.assert_array_equal(tensors["blk.0.ffn_down.weight.codes"], expected.codes)
        np.testing.assert_array_equal(tensors["blk.0.ffn_down.weight.scales"], expected.scales)


def recover_and_export(recipe: Recipe, inputs: dict[str, Artifact], tmp_path: Path, target: str) -> Path:
    """The folder recovery leaves, and in tmp_path/export the files."""
    for stage in ("recover", "export"):
        (tmp_path / stage).mkdir()
    out = tmp_path / "recover"
    metrics = recover.run(recipe, inputs, out, silent_log())
    assert 0 < metrics["kl_after"] < metrics["kl_before"]
    assert json.loads((out / "provenance.json").read_text())["recovered_for"] == target
    inputs = inputs | {"recover": write_manifest(out, "recover", "key", metrics)}
    export.run(recipe, inputs, tmp_path / "export", silent_log())
    return out


def check_untouched(file: GgufFile, model: Path) -> None:
    """Files that were not trained for hold the model that was not."""
    stored = open_checkpoint(model).read("model.layers.0.mlp.down_proj.weight")
    np.testing.assert_array_equal(file.read("blk.0.ffn_down.weight"), stored.astype(np.float16).astype(np.float32))


def test_recovery_stands_between_merge_and_export(folder: Path) -> None:
    recipe = make_recipe(folder, [{"ftype": "Q4_0"}])
    steps = {step.stage: step for step in steps_of(recipe)}
    assert list(steps)[:5] == ["data", "train", "merge", "recover", "export"]
    assert steps["recover"].reads == ("data", "merge")
    assert steps["export"].reads == ("data", "merge", "recover")
    assert not any("recover" in step.reads for stage, step in steps.items() if stage != "export")


GPTQ = [{"dtype": "int4", "method": "gptq"}]
WRONG: list[tuple[list[dict[str, Any]], dict[str, Any], str]] = [
    ([{"ftype": "Q4_0"}], {"target": "int4-32-gptq", "onnx": GPTQ}, r"int4-32-gptq is rounded with error feedback"),
    ([{"ftype": "Q4_0"}], {"target": "Q8_0"}, r"recover.target: Q8_0 is not among the files of export \(Q4_0\)"),
    ([{"ftype": "Q4_0"}, {"ftype": "F16"}], {}, r"recover.target: F16 has no grid to train for; name a quantized file"),
    ([{"ftype": "Q4_0", "rounding": "feedback"}], {}, r"Q4_0 is rounded with error feedback.*take that out"),
]


@pytest.mark.parametrize(("gguf", "recovering", "expected"), WRONG)
def test_recipes_that_contradict_themselves(
    folder: Path, gguf: list[dict[str, Any]], recovering: dict[str, Any], expected: str
) -> None:
    with pytest.raises(RecipeError, match=expected):
        make_recipe(folder, gguf, **recovering)
