"""What is read of an ONNX file before it is loaded, held to onnx's own reader, and what is refused."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeft.errors import ModelError, RuntimeFault
from edgeft.runtime import load
from edgeft.runtime.onnx_file import MAX_DEPTH, check_onnx, find_file, holds_onnx
from tests.onnx_graphs import write_decoder


def small_model(**external: Any) -> onnx.ModelProto:
    """y = x W; with `external` the data of W is said to lie there."""
    weight = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(3, 4), "W")
    if external:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in external.items():
            weight.external_data.add(key=key, value=str(value))
    sizes = {"x": ["n", 3], "y": ["n", 4]}
    put, given_ = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in sizes.items())
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "W"], ["y"])], "small", [put], [given_], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    helper.set_model_props(model, {"edgeft.recipe": "abc"})
    return model


def nested(depth: int) -> onnx.ModelProto:
    """A graph inside a graph inside … of `If` nodes."""
    graph = small_model().graph
    for _ in range(depth):
        outer = helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=small_model().graph)
        graph = helper.make_graph([outer], "outer", [], [])
    return helper.make_model(graph)


def test_facts_are_those_of_onnx(model_folder: Path, tmp_path: Path) -> None:
    path = write_decoder(model_folder, tmp_path / "decoder", data_file="weights.bin") / "model.onnx"
    ours, theirs = check_onnx(path), onnx.load(path, load_external_data=False)
    assert (ours.ir_version, ours.opsets) == (10, {"ai.onnx": 21, "com.microsoft": 1})
    assert [(node.op, node.inputs) for node in ours.nodes] == [
        (node.op_type, tuple(node.input)) for node in theirs.graph.node
    ]
    external = [tensor for tensor in theirs.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    assert [each.tensor for each in ours.external] == [tensor.name for tensor in external]
    assert ours.weight_bytes == path.stat().st_size + (tmp_path / "decoder" / "weights.bin").stat().st_size
    assert ours.consumers("past_key_values.0.key") == {"GroupQueryAttention"}


def test_metadata(tmp_path: Path) -> None:
    onnx.save(small_model(), tmp_path / "small.onnx")
    assert check_onnx(tmp_path / "small.onnx").metadata == {"edgeft.recipe": "abc"}


def test_data_elsewhere_in_the_folder_is_fine(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").write_bytes(bytes(64))
    onnx.save(small_model(location="data/w.bin", offset=16, length=48), tmp_path / "small.onnx")
    assert [each.location for each in check_onnx(tmp_path / "small.onnx").external] == ["data/w.bin"]


@pytest.mark.parametrize(
    ("external", "message"),
    [
        ({"location": "missing.bin"}, "should be in missing.bin, which is not there; copy the whole folder"),
        ({"location": "w.bin", "offset": 16, "length": 49}, "ends at byte 65 of w.bin, which has 64: incomplete"),
        ({"location": "w.bin", "offset": 65}, "ends at byte 65"),
        ({"location": "w.bin", "offset": -4, "length": 48}, "incomplete"),
        ({"location": "w.bin", "offset": 0, "length": -1}, "incomplete"),
        ({"location": "w.bin", "offset": "0x10"}, "at no number of bytes"),
        ({"location": "../w.bin"}, "lies outside the model's folder ('../w.bin'); do not trust"),
        ({"location": "data/../../w.bin"}, "outside"),
        ({"location": "/etc/hostname"}, "outside"),
        ({"location": "C:\\w.bin"}, "outside"),
        ({"location": "..\\w.bin"}, "outside"),
        ({"location": ""}, "outside"),
        ({"location": "link.bin"}, "is a link out of the model's folder"),
        ({"location": "."}, "not there"),
    ],
)
def test_data_that_is_not_read(tmp_path: Path, external: dict[str, Any], message: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for where in (folder, tmp_path):
        (where / "w.bin").write_bytes(bytes(64))
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    onnx.save(small_model(**external), folder / "model.onnx")
    with pytest.raises(ModelError) as error:
        check_onnx(folder / "model.onnx")
    assert message in str(error.value)


def changed(model: onnx.ModelProto, change: Callable[[bytes], bytes]) -> bytes:
    return change(model.SerializeToString())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"PK\x03\x04 a zip file", "not an ONNX file"),
        (b"GGUF" + bytes(64), "not an ONNX file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not an ONNX file"),
        (changed(small_model(), lambda raw: raw[:-40]), "incomplete ONNX file"),
        (changed(small_model(), lambda raw: raw + b"\xff"), "incomplete ONNX file"),
        (changed(small_model(), lambda raw: raw[:2]), "without a graph"),
        (changed(small_model(), lambda raw: raw + b"\x80" * 11), "damaged"),
        (changed(nested(MAX_DEPTH + 1), bytes), f"nested more than {MAX_DEPTH} deep"),
    ],
)
def test_files_that_are_not_read(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        check_onnx(tmp_path / "model.onnx")


def test_nested_graphs_are_walked(tmp_path: Path) -> None:
    onnx.save(nested(MAX_DEPTH), tmp_path / "deep.onnx")
    check_onnx(tmp_path / "deep.onnx")


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_an_error_or_a_file(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    raw = bytearray(small_model(location="w.bin", offset=0, length=48).SerializeToString())
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    with contextlib.suppress(ModelError):
        check_onnx(path)


def test_a_graph_that_onnxruntime_refuses(model_folder: Path, tmp_path: Path) -> None:
    path = write_decoder(model_folder, tmp_path / "decoder") / "model.onnx"
    model = onnx.load(path)
    matrix = next(weight for weight in model.graph.initializer if weight.name == "layers.0.mlp.down_proj")
    matrix.dims[0], matrix.dims[1] = matrix.dims[1], matrix.dims[0]
    onnx.save(model, path)
    with pytest.raises(RuntimeFault, match=r"onnxruntime (refused the file|did not run)"), load(path) as damaged:
        damaged.score([1, 2])


def fixed(graph: Any, name: str) -> None:
    """Make an input a constant."""
    graph.input.remove(next(put for put in graph.input if put.name == name))
    graph.initializer.append(numpy_helper.from_array(np.ones((1, 1), np.int64), name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda graph: fixed(graph, "input_ids"), "does not turn input_ids into logits"),
        (lambda graph: graph.output.pop(0), "does not turn input_ids into logits"),
        (lambda graph: graph.output.pop(1), "does not give back present.0.key"),
        (lambda graph: graph.input.append(helper.make_tensor_value_info("beam_idx", TensorProto.INT64, [1])),
         "inputs that are not known here: beam_idx"),
    ],
)  # fmt: skip
def test_graphs_that_are_no_decoder(
    model_folder: Path, tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    path = write_decoder(model_folder, tmp_path / "decoder") / "model.onnx"
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, path)
    with pytest.raises(ModelError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("files", "given", "found", "folder"),
    [
        (["model.onnx"], ".", "model.onnx", "."),
        (["model_q4.onnx"], ".", "model_q4.onnx", "."),
        (["model_q4.onnx", "model.onnx"], ".", "model.onnx", "."),
        (["onnx/model.onnx", "onnx/model_q4.onnx", "tokenizer.json"], ".", "onnx/model.onnx", "."),
        (["onnx/model.onnx", "onnx/model_q4.onnx", "tokenizer.json"], "onnx/model_q4.onnx", "onnx/model_q4.onnx", "."),
        (["onnx/model_q4.onnx", "onnx/tokenizer.json"], "onnx/model_q4.onnx", "onnx/model_q4.onnx", "onnx"),
        (["decoder_model_merged.onnx", "decoder_model.onnx"], ".", "decoder_model_merged.onnx", "."),
    ],
)
def test_the_file_of_a_folder(tmp_path: Path, files: list[str], given: str, found: str, folder: str) -> None:
    touch(tmp_path, files)
    assert holds_onnx(tmp_path / given)
    assert find_file(tmp_path / given) == (tmp_path / found, tmp_path / folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [(["config.json"], "no .onnx file"), (["a.onnx", "onnx/b.onnx"], r"several models \(a.onnx, onnx/b.onnx\)")],
)
def test_no_file_of_a_folder(tmp_path: Path, files: list[str], message: str) -> None:
    touch(tmp_path, files)
    with pytest.raises(ModelError, match=message):
        find_file(tmp_path)


def touch(folder: Path, files: list[str]) -> None:
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
