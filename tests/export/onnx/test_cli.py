"""`edgeft export onnx` on a model folder."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgeft.cli import edgeft
from edgeft.errors import MissingExtra
from edgeft.runtime.onnx_file import check_onnx
from tests.tiny_models import make_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), "smollm2")


def run(folder: Path, out: Path, *words: str) -> Result:
    return CliRunner().invoke(edgeft, ["export", "onnx", str(folder), "-o", str(out), *words])


def records(folder: Path, out: Path, *words: str) -> list[dict[str, Any]]:
    result = run(folder, out, "--json", *words)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_files_and_their_sizes(folder: Path, tmp_path: Path) -> None:
    result = run(folder, tmp_path, "--dtype", "int4", "--dtype", "fp32", "--asymmetric", "--layout", "plain")
    assert result.exit_code == 0, result.output
    assert f"{tmp_path}/int4-32-asymmetric/model.onnx" in result.stdout
    assert not (tmp_path / "fp32/genai_config.json").exists()


def test_every_method_rounds_otherwise(folder: Path, tmp_path: Path) -> None:
    made = set()
    for method in ("rtn", "k_quant", "hqq", "gptq", "feedback"):
        [record] = records(folder, tmp_path / method, "--method", method)
        assert record["dtype"] == "int4"
        made.add((tmp_path / method / "int4-32/model.onnx.data").read_bytes())
    assert len(made) == 5


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--dtype", "q4"], 2, "'q4' is not one of 'int4'"),
        (["--dtype", "int8", "--min-ort", "1.20"], 2, "8 bits need onnxruntime 1.23"),
        (["--block-size", "20"], 2, "give a power of two"),
        (["--task", "text-classification"], 2, "a decoder is exported for text-generation-with-past"),
        (["--method", "rtn", "--text", "x"], 2, "--method rtn needs no texts"),
    ],
)
def test_wrong_usage(folder: Path, tmp_path: Path, words: list[str], code: int, message: str) -> None:
    result = run(folder, tmp_path / "out", *words)
    assert getattr(result.exception, "exit_code", result.exit_code) == code
    assert message in f"{result.output}{result.exception}"
    assert not list(tmp_path.rglob("*.onnx"))


def test_optimum_is_driven_where_it_is(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = run(folder, tmp_path / "out", "--exporter", "optimum")
    assert isinstance(missing.exception, MissingExtra)
    assert "is not on the PATH; install optimum-onnx in an environment of its own" in str(missing.exception)
    program = tmp_path / "optimum-cli"
    program.write_text(
        '#!/bin/sh\n[ "$6" = broken ] && echo "no such task" >&2 && exit 3\n/bin/mkdir "$7"\necho x > "$7/model.onnx"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin")
    [record] = records(folder, tmp_path / "out", "--exporter", "optimum", "--task", "text-generation-with-past")
    assert record == {"file": "model.onnx", "format": "onnx", "dtype": "fp32", "bytes": 2}
    program.write_text("#!/bin/sh\necho 'no such command' >&2\nexit 2\n")
    failed = run(folder, tmp_path / "other", "--exporter", "optimum")
    assert "optimum-cli ended with exit code 2 and made 0 graphs; it said\n  no such command" in str(failed.exception)


def test_encoders_go_by_their_own_road(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "bert, classifier")
    [record] = records(model, tmp_path / "out", "--dtype", "fp32", "--task", "text-classification")
    assert (record["file"], record["task"]) == ("fp32/model.onnx", "text-classification")
    assert (tmp_path / "out/fp32/model.onnx").is_file()
    refused = run(model, tmp_path / "other", "--method", "rtn")
    assert refused.exit_code == 2
    assert "method: not for encoders, which have --dtype, --task, --layout and --vnni-only" in refused.output
    [record] = records(model, tmp_path / "wide", "--dtype", "int8", "--vnni-only")
    assert record["file"] == "int8-vnni/model.onnx"
    assert check_onnx(tmp_path / "wide/int8-vnni/model.onnx").metadata["edgeft.int8_processors"] == "vnni"
    assert json.loads((tmp_path / "wide/int8-vnni/config.json").read_text())["edgeft_int8_processors"] == "vnni"
    floats = run(model, tmp_path / "other", "--dtype", "fp32", "--vnni-only")
    assert floats.exit_code == 2
    assert "--vnni-only is about int8 weights; fp32 has none" in floats.output
    [record] = records(model, tmp_path / "js", "--dtype", "int8", "--layout", "transformers.js")
    assert record["file"] == "int8/onnx/model_quantized.onnx"
    genai = run(model, tmp_path / "other", "--layout", "genai")
    assert genai.exit_code == 2
    assert "onnxruntime-genai runs decoders; take plain or transformers.js" in genai.output
