"""A classifier from data to verdict: every stage of such a recipe, and what a broken folder is told."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

from edgeft.artifact import read_artifact
from edgeft.cli import edgeft
from edgeft.console import silent_log
from edgeft.errors import ModelError, ParityFailed
from edgeft.export.onnx.encoder_confidence import fit_temperature
from edgeft.pipeline import run
from edgeft.recipe_reader import read_recipe
from edgeft.runtime import load
from edgeft.runtime.encoder import EncoderModel
from edgeft.stages import encoder_bench, encoder_parity
from edgeft.store import Store
from tests.tiny_encoder import make_tiny_encoder

pytestmark = pytest.mark.slow

RECIPE = """
name: intents
model: {base: base}
data: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl, max_length: 16}
train: {objective: classification, method: full, torch_dtype: float32, learning_rate: 3e-3,
        num_train_epochs: 12, batch_tokens: 32}
export: {encoder: [{dtype: fp32}, {dtype: int8_static, calibrate_method: percentile}, {dtype: int8}]}
parity: {prompts: 8, tolerance: {q8_0: {top1: 0.8, kl_mean: 0.1}}}
bench: {metrics: [label_accuracy, macro_f1, ece], latency: {prompts: 2, repetitions: 2}, abstain_below: 0.05}
gate: {label_accuracy: ">= 0.9", label_accuracy_drop: "<= 0.1", size_bytes: "<= 60KB", texts_per_s_batch_32: "> 1"}
"""
QUESTIONS = {
    "light": ["turn on the light", "lamp off please", "light on in kitchen", "turn off the lamp now"],
    "music": ["play some music", "play the song please", "stop the music now", "some song in bedroom"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("road")
    make_tiny_encoder(folder / "base", "bert")
    for split, words in (("train", ["", "please ", "now "]), ("validation", ["some "]), ("test", ["the "])):
        rows = [
            [{"role": "user", "content": word + text}, {"role": "assistant", "content": label}]
            for label, texts in QUESTIONS.items()
            for text in texts
            for word in words
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    recipe = read_recipe(folder / "recipe.yaml")
    result = run(recipe, Store(folder / "runs"), silent_log())
    assert result.failure is None
    return recipe, result.artifacts


def test_a_classifier_reaches_a_verdict(made: tuple[Any, dict[str, Any]]) -> None:
    _, artifacts = made
    assert list(artifacts) == ["data", "train", "merge", "export", "parity", "baseline", "bench", "gate", "report"]
    bench = json.loads(artifacts["bench"].file("bench.json").read_bytes())
    assert bench["file"] == "int8/model.onnx"
    assert {score["metric"] for score in bench["accuracy"]["scores"]} == {"label_accuracy", "macro_f1", "ece"}
    assert [each["file"] for each in json.loads(artifacts["bench"].file("others.json").read_bytes())] == [
        "fp32/model.onnx", "int8_static/model.onnx",
    ]  # fmt: skip
    assert artifacts["bench"].metrics["size_bytes"] == (artifacts["export"].path / "int8/model.onnx").stat().st_size
    rows = {row["form"]: row for row in json.loads(artifacts["parity"].file("parity.json").read_bytes())["rows"]}
    assert list(rows) == ["torch", "fp32", "int8_static", "int8"]
    assert rows["fp32"]["max_logit_difference"] < 1e-4
    report = artifacts["report"].file("report.txt").read_text()
    assert all(word in report for word in ("int8/model.onnx", "label_accuracy", "fp32"))


def test_the_file_answers_as_the_predictions_say(made: tuple[Any, dict[str, Any]]) -> None:
    _, artifacts = made
    lines = artifacts["bench"].file("predictions.jsonl").read_text().splitlines()
    texts = [json.loads(line)["messages"][0]["content"] for line in artifacts["data"].file("test.jsonl").open()]
    model: Any = load(artifacts["export"].path / "int8")
    with model:
        assert isinstance(model, EncoderModel)
        assert model.confidence.threshold == 0.05
        found = model.classify(texts)
    assert [answer.label for answer in found] == [json.loads(line)["text"] for line in lines]
    given = [max(answer.probabilities.values()) for answer in found]
    np.testing.assert_allclose(given, [np.exp(json.loads(line)["log_prob"]) for line in lines], rtol=1e-4)


def test_the_temperature_is_the_one_torch_finds() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((400, 7), generator=generator, dtype=torch.float64) * 6
    labels = torch.multinomial((logits / 2.5).softmax(1), 1, generator=generator)[:, 0]
    logarithm = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logarithm], max_iter=100, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits / logarithm.exp(), labels)
        loss.backward()
        return loss

    optimizer.step(step)
    ours = fit_temperature(logits.numpy(), labels.numpy())
    assert ours == pytest.approx(logarithm.exp().item(), rel=1e-5)
    assert 2 < ours < 3


def test_a_folder_of_another_model_is_no_parity(made: tuple[Any, dict[str, Any]], tmp_path: Path) -> None:
    """The classes' biases in another order: the graph runs, and says something else."""
    recipe, artifacts = made
    export = _copied(artifacts["export"], tmp_path)
    graph = export.path / "fp32" / "model.onnx"
    model = onnx.load(graph)
    bias = next(each for each in model.graph.initializer if each.name == "classifier.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias)[::-1] + np.float32([3, 0]), bias.name))
    onnx.save(model, graph)
    with pytest.raises(ParityFailed, match="first bad: fp32: kl_mean"):
        encoder_parity.run(recipe, {**artifacts, "export": export}, _folder(tmp_path / "parity"), silent_log())
    finding = json.loads((tmp_path / "parity" / "parity.json").read_bytes())["finding"]
    assert (finding["kind"], finding["name"]) == ("tensor", "classifier.bias")


def test_a_damaged_folder_is_named(made: tuple[Any, dict[str, Any]], tmp_path: Path) -> None:
    recipe, artifacts = made
    export = _copied(artifacts["export"], tmp_path)
    (export.path / "int8" / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"int8/tokenizer.json: not a tokenizer"):
        encoder_bench.run(recipe, {**artifacts, "export": export}, _folder(tmp_path / "bench"), silent_log())


def test_the_commands_take_an_encoders_folder(made: tuple[Any, dict[str, Any]]) -> None:
    _, artifacts = made
    folder, test = str(artifacts["export"].path / "int8"), str(artifacts["data"].file("test.jsonl"))
    speed = ("--metric", "label_accuracy", "--prompts", "1", "--repetitions", "1", "--json")
    result = CliRunner().invoke(edgeft, ["bench", folder, "--data", test, *speed])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["metrics"]["label_accuracy"] == artifacts["bench"].metrics["label_accuracy"]
    result = CliRunner().invoke(edgeft, ["bench", folder, "--synthetic", "8:8"])
    assert (result.exit_code, "a classifier is measured on --data" in result.output) == (2, True)
    result = CliRunner().invoke(edgeft, ["parity", str(artifacts["merge"].path), folder, "--json"])
    assert result.exit_code == 0, result.output
    assert [row["form"] for row in json.loads(result.stdout)["rows"]] == ["torch", "int8"]


def _copied(artifact: Any, tmp_path: Path) -> Any:
    return read_artifact(shutil.copytree(artifact.path, tmp_path / "export"))


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
