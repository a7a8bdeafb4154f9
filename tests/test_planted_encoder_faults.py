"""Faults planted in encoders' ONNX folders: bisect finds each, and names the token, the tensor or the node."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper

from edgeft.cli import edgeft
from edgeft.console import silent_log
from edgeft.export.onnx.encoders import EncoderSettings, export_encoder
from edgeft.parity.bisect_encoder import bisect_encoder
from edgeft.parity.finding import Finding
from tests.export.test_onnx_encoders import TASKS, TEXTS, make_model
from tests.tiny_encoder import KINDS

DTYPES = ("fp32", "fp16", "int8", "int8_static")
QKV = "encoder.layer.1.attention.self.qkv"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, a BERT classifier, and its honest exports in folders called after their types."""
    root = tmp_path_factory.mktemp("encoder")
    make_model(root / "model", "bert", "text-classification", {})
    for dtype in DTYPES:
        export(root / "model", root / dtype, dtype)
    return root


def export(model: Path, out: Path, dtype: Any = "fp32", **options: Any) -> None:
    export_encoder(model, out, settings=EncoderSettings(dtype), texts=TEXTS, log=silent_log(), **options)


def found(model: Path, path: Path) -> Finding | None:
    return bisect_encoder(model, path, TEXTS, silent_log(), n_threads=1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_honest_folders_have_no_fault(dtype: str, root: Path) -> None:
    assert found(root / "model", root / dtype) is None


@pytest.mark.filterwarnings("ignore::edgeft.errors.Int8Warning")
@pytest.mark.parametrize("dtype", ["int8", "int8_static"])
def test_honest_folders_for_vnni_alone_have_no_fault_here(dtype: Any, root: Path, tmp_path: Path) -> None:
    settings = EncoderSettings(dtype, reduce_range=False)
    export_encoder(root / "model", tmp_path / "out", settings=settings, texts=TEXTS, log=silent_log())
    assert found(root / "model", tmp_path / "out") is None


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_honest_folders_of_every_kind_have_no_fault(kind: str, task: str, tmp_path: Path) -> None:
    make_model(tmp_path / "model", kind, task, {"pad_token_id": 1} if kind == "roberta" else {})
    export(tmp_path / "model", tmp_path / "out")
    assert found(tmp_path / "model", tmp_path / "out") is None


def weights(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[onnx.ModelProto], None]:
    def plant(model: onnx.ModelProto) -> None:
        tensor = next(each for each in model.graph.initializer if each.name == name)
        changed = np.ascontiguousarray(change(numpy_helper.to_array(tensor).copy()))
        tensor.CopyFrom(numpy_helper.from_array(changed, name))

    return plant


def node(name: str, **attributes: Any) -> Callable[[onnx.ModelProto], None]:
    def plant(model: onnx.ModelProto) -> None:
        for each in model.graph.node:
            if each.name == name:
                kept = [attribute for attribute in each.attribute if attribute.name not in attributes]
                del each.attribute[:]
                each.attribute.extend([*kept, *(helper.make_attribute(*item) for item in attributes.items())])

    return plant


def no_bias(model: onnx.ModelProto) -> None:
    """The activation of layer 0 without the bias of its product."""
    for each in model.graph.node:
        if each.name == "encoder.layer.0.intermediate.dense.activation":
            each.op_type, each.domain = "Gelu", ""
            del each.input[1:]


def no_mask(model: onnx.ModelProto) -> None:
    """Everything is seen, padding as well."""
    cast = next(each for each in model.graph.node if each.name == "mask")
    same = helper.make_node("Equal", ["attention_mask", "attention_mask"], ["same"], name="same")
    model.graph.node.insert(0, same)
    cast.input[0] = "same"


def third_row(values: np.ndarray) -> np.ndarray:
    values[2] += 1
    return values


FAULTS = {
    "a bias": (
        "fp32", weights("classifier.bias", lambda bias: bias[::-1]),
        ("tensor", "classifier.bias", "values are not the checkpoint's"),
    ),
    "a row of int8 embeddings": (
        "int8", weights("embeddings.word_embeddings.weight", third_row),
        ("tensor", "embeddings.word_embeddings.weight", "the first at (2, 0)"),
    ),
    "an int8 product's scales": (
        "int8_static", weights(f"{QKV}.scale", lambda scale: scale * 1.1),
        ("tensor", f"{QKV}.weight", "values are not the checkpoint's"),
    ),
    "channels evened out twice": (
        "int8", weights(f"{QKV}.scaling", lambda scaling: scaling**2),
        ("tensor", f"{QKV}.weight", "values are not the checkpoint's"),
    ),
    "an epsilon": (
        "fp32", node("encoder.layer.0.attention.output.LayerNorm", epsilon=0.5),
        ("node", "encoder.layer.0.intermediate.dense",
         "look between it and encoder.layer.0.attention.output.dense; so the graph is wrong whatever it is given"),
    ),
    "a bias left out": (
        "fp16", no_bias,
        ("node", "encoder.layer.0.output.dense", "look between it and encoder.layer.0.intermediate.dense"),
    ),
    "heads": (
        "fp32", node("encoder.layer.1.attention.self", num_heads=4),
        ("node", "encoder.layer.1.attention.output.dense", f"look between it and {QKV}"),
    ),
    "mask": (
        "fp32", no_mask,
        ("node", "encoder.layer.0.attention.output.dense", "in a batch: is attention_mask followed?"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_named(fault: str, root: Path, tmp_path: Path) -> None:
    dtype, plant, (kind, name, said) = FAULTS[fault]
    shutil.copytree(root / dtype, tmp_path / "faulty")
    model = onnx.load(tmp_path / "faulty" / "model.onnx")
    plant(model)
    onnx.save(model, tmp_path / "faulty" / "model.onnx")
    finding = found(root / "model", tmp_path / "faulty")
    assert finding is not None
    assert (finding.kind, finding.name) == (kind, name), finding.message
    assert said in finding.message


def test_another_tokenizer_is_found_first(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "fp32", tmp_path / "faulty")
    path = tmp_path / "faulty" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["light"], vocabulary["lamp"] = vocabulary["lamp"], vocabulary["light"]
    path.write_text(json.dumps(content))
    finding = found(root / "model", tmp_path / "faulty")
    assert finding is not None
    assert (finding.kind, finding.name) == ("token", "light")
    assert (
        "token 4 of 'turn on the light' is 9 ('light') in onnxruntime, 8 ('light') in transformers" in finding.message
    )


def test_a_graph_of_another_exporter_is_compared_where_it_ends(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "fp32", tmp_path / "faulty")
    model = onnx.load(tmp_path / "faulty" / "model.onnx")
    weights("classifier.bias", lambda bias: bias + 1)(model)
    names = {each.name: f"t{at}" for at, each in enumerate(model.graph.initializer)}
    for each in model.graph.initializer:
        each.name = names[each.name]
    for at, each in enumerate(model.graph.node):
        each.name = f"n{at}"
        each.input[:] = [names.get(value, value) for value in each.input]
    onnx.save(model, tmp_path / "faulty" / "model.onnx")
    finding = found(root / "model", tmp_path / "faulty")
    assert finding is not None
    assert (finding.kind, finding.name) == ("node", "logits")


def test_the_command_names_it(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "fp32", tmp_path / "faulty")
    model = onnx.load(tmp_path / "faulty" / "model.onnx")
    weights("classifier.bias", lambda bias: bias[::-1])(model)
    onnx.save(model, tmp_path / "faulty" / "model.onnx")
    folders = [str(root / "fp32"), str(tmp_path / "faulty")]
    result = CliRunner().invoke(edgeft, ["parity", str(root / "model"), *folders, "--bisect"])
    assert str(result.exception).endswith(": faulty")
    assert "fp32: nothing found" in result.stdout
    assert "faulty: classifier.bias" in result.stdout
