"""What the entries of a recipe's `export.onnx` become."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgeft.artifact import Artifact, write_manifest
from edgeft.console import silent_log
from edgeft.errors import UsageError
from edgeft.export.onnx.export import export_onnx
from edgeft.export.onnx.settings import OnnxSettings
from edgeft.recipe import Recipe
from edgeft.stages._onnx import onnx_settings
from tests.tiny_models import make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_model(tmp_path_factory.mktemp("model"), "smollm2", hidden_size=128)
    (folder / "provenance.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("data")
    turns = [{"role": "user", "content": "turn on the light"}, {"role": "assistant", "content": "done, it is on"}]
    lines = [json.dumps({"messages": [{**turns[0], "content": f"{n} lights"}, turns[1]]}) for n in range(8)]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    return write_manifest(folder, "data", "key", {})


def settings_of(model: Path, data: Artifact, *entries: dict[str, Any]) -> dict[str, OnnxSettings]:
    splits = {split: f"{split}.jsonl" for split in ("train", "validation", "test")}
    export = {"onnx": list(entries), "calibration_tokens": 512}
    content = {"name": "tiny", "model": {"base": str(model)}, "data": splits, "train": {}, "export": export}
    return onnx_settings(Recipe.build(content, model), model, data, silent_log())


def test_entries_of_every_kind_are_written(model: Path, data: Artifact, tmp_path: Path) -> None:
    settings = settings_of(
        model,
        data,
        {"dtype": "fp16", "layout": "plain"},
        {"dtype": "int8", "block_size": 64, "method": "rtn", "activations": "float16"},
        {"dtype": "int4", "symmetric": False, "method": "gptq", "head_dtype": "int8"},
        {"dtype": "auto"},
    )
    assert list(settings) == ["fp16", "int8-64-rtn-fp16", "int4-32-asymmetric-gptq-head-int8", "mix"]
    records = export_onnx(model, tmp_path, entries=settings, provenance={}, log=silent_log())
    assert [record["ftype"] for record in records] == list(settings)
    assert [record["min_ort"] for record in records] == ["1.20", "1.23", "1.23", "1.23"]
    assert len({grid.name for grid in settings["mix"].grids.values() if grid}) > 1


def test_a_mix_keeps_to_what_is_asked(model: Path, data: Artifact, tmp_path: Path) -> None:
    """With an older onnxruntime no 8 bits; and no more bytes than the target."""
    everywhere = export_onnx(model, tmp_path, entries=[OnnxSettings("int4", 128)], provenance={}, log=silent_log())
    target = everywhere[0]["bytes"]
    [settings] = settings_of(model, data, {"dtype": "auto", "min_ort": "1.20", "target_bytes": target}).values()
    assert {grid.bits for grid in settings.grids.values() if grid} == {4}
    [record] = export_onnx(model, tmp_path, entries={"mix": settings}, provenance={}, log=silent_log())
    assert record["bytes"] <= target * 1.15  # graph and vectors come on top
    with pytest.raises(UsageError, match="target_bytes 9: the smallest mix"):
        settings_of(model, data, {"dtype": "auto", "target_bytes": 9})
