"""`edgeft export` on a model folder."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeft.cli import edgeft
from edgeft.quant.imatrix import write_imatrix
from tests.export.quantizing import types_of
from tests.export.test_streaming import random_imatrix


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gguf", "m"], "a model folder needs -o DIR"),
        (["mlx", "m", "--out", "o"], "nothing but gguf or onnx before it; got mlx m"),
        (["onnx", "m", "--out", "o", "--ftype", "F16"], "--ftype, --imatrix and --adapter-only are for gguf"),
        (["m", "--out", "o", "--block-size", "32"], "block_size is for onnx; write: edgeft export onnx m"),
        (["onnx", "recipe.yaml", "--dtype", "int4"], "the files stand in its section `export`"),
        (["gguf", "recipe.yaml", "--imatrix", "x"], "the files stand in its section `export`"),
        (["gguf", "m", "--out", "o", "--adapter-only"], "--adapter-only needs --adapter DIR"),
        (["m", "--out", "o", "--adapter", "a", "--adapter-only", "--ftype", "F16"], "takes no --ftype"),
    ],
)
def test_wrong_usage(words: list[str], message: str) -> None:
    result = CliRunner().invoke(edgeft, ["export", *words])
    assert result.exit_code == 2
    assert message in result.output


def test_quantized_with_importance(model_folder: Path, tmp_path: Path) -> None:
    def export(*words: str) -> list[dict[str, object]]:
        command = ["export", "gguf", str(model_folder), "--out", str(tmp_path), "--json", *words]
        result = CliRunner().invoke(edgeft, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    (record,) = export("--ftype", "F32")
    blindly, weighed = tmp_path / "blindly.gguf", tmp_path / f"{model_folder.name}-Q4_0.gguf"
    export("--ftype", "Q4_0")
    weighed.rename(blindly)
    write_imatrix(tmp_path / "imatrix.gguf", random_imatrix(tmp_path / str(record["file"])))
    export("--ftype", "Q4_0", "--imatrix", str(tmp_path / "imatrix.gguf"), "--threads", "1")
    assert types_of(weighed) == types_of(blindly)
    assert weighed.read_bytes() != blindly.read_bytes()
