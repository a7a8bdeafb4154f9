"""`edgeft inspect`: what a file says about itself, on 80 columns."""

import json
from pathlib import Path
from typing import Any

import gguf
import onnx
import pytest
from click.testing import CliRunner, Result
from safetensors import safe_open

from edgeft.cli.inspect import WIDTH, command
from edgeft.console import silent_log
from edgeft.errors import ModelError
from edgeft.runtime.inspection import inspect_model
from tests.onnx_graphs import write_decoder
from tests.tiny import CHATML, make_tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgeft.export.gguf import write_gguf

    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(folder, path, ftype="F16", name="tiny", provenance={"recipe": "abc"}, log=silent_log())
    return path


def inspect(*args: Any) -> Result:
    return CliRunner().invoke(command("inspect", "Show."), [str(arg) for arg in args])


def test_facts_of_a_file_are_those_of_gguf_py(file: Path) -> None:
    facts, reader = inspect_model(file), gguf.GGUFReader(file)
    assert (facts["format"], facts["bytes"]) == ("GGUF 3", file.stat().st_size)
    assert facts["chat_template"] == CHATML
    assert facts["provenance"]["edgeft.recipe"] == "abc"
    assert facts["hyperparameters"]["llama.block_count"] == reader.fields["llama.block_count"].contents()
    assert facts["tokenizer"]["special"]["eos"]["text"] == "<|im_end|>"
    assert {tensor["name"]: tensor["shape"] for tensor in facts["tensors"]} == {
        tensor.name: [int(size) for size in tensor.shape[::-1]] for tensor in reader.tensors
    }
    assert sum(row["bytes"] for row in facts["types"].values()) == sum(tensor.n_bytes for tensor in reader.tensors)
    assert facts["odd"] == []


def test_facts_of_a_folder_are_those_of_safetensors(folder: Path) -> None:
    facts = inspect_model(folder)
    with safe_open(folder / "model.safetensors", "np") as stored:
        shapes = {name: stored.get_slice(name).get_shape() for name in stored.keys()}  # noqa: SIM118
    assert {tensor["name"]: tensor["shape"] for tensor in facts["tensors"]} == shapes
    assert (facts["architecture"], facts["tokenizer"]["kind"]) == ("llama", "BPE")


@pytest.mark.parametrize("options", [(), ("--tensors",), ("--load",)])
def test_the_output_fits_80_columns(file: Path, options: tuple[str, ...]) -> None:
    done = inspect(file, *options)
    assert done.exit_code == 0, done.output
    assert max(map(len, done.output.splitlines())) <= WIDTH
    assert ("blk.0.attn_q.weight" in done.output) == ("--tensors" in options)
    assert ("n_generated" in done.output) == ("--load" in options)


def test_json_is_json(file: Path, folder: Path) -> None:
    whole = json.loads(inspect(file, "--json", "--tensors", "--load").output)
    assert {tensor["type"] for tensor in whole["tensors"]} == set(whole["types"]) == {"F16", "F32"}
    assert whole["loaded"]["n_vocab"] == whole["tokenizer"]["size"]
    assert "tensors" not in json.loads(inspect(folder, "--json").output)


def test_what_is_odd_is_said(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    odd = tmp_path / "odd.gguf"
    odd.write_bytes(content.replace(b"tokenizer.chat_template", b"tokenizer.chat_tempfate") + bytes(999))
    sentences = inspect_model(odd)["odd"]
    assert [sentence.split(":")[0] for sentence in sentences] == [
        "there is no chat template",
        "999 bytes follow the last tensor",
    ]


def test_folders_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        inspect_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="there are no weights"):
        inspect_model(tmp_path)
    assert inspect(tmp_path, "--load").exit_code == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 40,
        (2).to_bytes(8, "little") + b"[]",
        (20).to_bytes(8, "little") + b'{"a": {"dtype": 1}} ',
        (68).to_bytes(8, "little") + b'{"a": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}}   ',
    ],
)
def test_damaged_safetensors_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="damaged"):
        inspect_model(tmp_path)


def test_facts_of_an_onnx_folder_are_those_of_onnx(folder: Path, tmp_path: Path) -> None:
    model_folder = write_decoder(folder, tmp_path / "onnx", data_file="weights.bin")
    model = onnx.load(model_folder / "model.onnx", load_external_data=False)
    facts = inspect_model(model_folder)
    assert (facts["format"], facts["architecture"]) == (f"ONNX {model.ir_version}", "llama")
    assert facts["bytes"] == sum((model_folder / name).stat().st_size for name in ("model.onnx", "weights.bin"))
    assert [(tensor["name"], tensor["type"], tensor["shape"]) for tensor in facts["tensors"]] == [
        (tensor.name, onnx.TensorProto.DataType.Name(tensor.data_type), list(tensor.dims))
        for tensor in model.graph.initializer
    ]
    assert facts["hyperparameters"]["GroupQueryAttention"] == "2 nodes"
    assert facts["chat_template"] == CHATML
    result = inspect(model_folder, "--load")
    assert result.exit_code == 0, result.output
    assert "GroupQueryAttention" in result.stdout
    assert "n_generated  4" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= WIDTH
