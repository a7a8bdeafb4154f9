"""The export and parity stages on a small LoRA run made by hand."""

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import onnx
import pytest

from edgeft.artifact import Artifact, write_manifest
from edgeft.console import silent_log
from edgeft.errors import ParityFailed
from edgeft.export.gguf import quantize_gguf
from edgeft.recipe import Recipe
from edgeft.stages import bench, export, parity, report
from edgeft.training.merging import merge_adapter
from tests.lively import make_lively_llama
from tests.parity_models import plant

PROVENANCE = {
    "recipe_sha256": "aa",
    "data_sha256": "bb",
    "base": "lively",
    "base_sha256": "cc",
    "edgeft_version": "0.1.0",
    "seed": 42,
}


def lora_on(folder: Path, out: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config).save_pretrained(out)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(recipe from sections, artifacts of data, train and merge)."""
    root = tmp_path_factory.mktemp("run")
    base = make_lively_llama(root / "base")
    for stage in ("data", "train", "merge"):
        (root / stage).mkdir()
    (root / "data" / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(base / name, root / "data" / "tokenizer" / name)
    turns = [{"role": "user", "content": "turn on"}, {"role": "assistant", "content": "done"}]
    for split in ("train", "test"):
        lines = [json.dumps({"messages": [{**turns[0], "content": f"{split} {i}"}, turns[1]]}) for i in range(6)]
        (root / "data" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    lora_on(base, root / "train" / "adapter")
    shutil.copytree(base, root / "merge", dirs_exist_ok=True)
    merge_adapter(base, root / "train" / "adapter", root / "merge", "float32")
    (root / "merge" / "provenance.json").write_text(json.dumps(PROVENANCE))
    artifacts = {stage: write_manifest(root / stage, stage, "key", {}) for stage in ("data", "train", "merge")}

    def recipe(**sections: Any) -> Recipe:
        data = {split: f"{split}.jsonl" for split in ("train", "validation", "test")}
        content = {"name": "tiny", "model": {"base": str(base)}, "data": data, "train": {}} | sections
        return Recipe.build({"bench": {"n_threads": 1}, "parity": {"prompts": 4, "n_gen": 8}} | content, root)

    return recipe, artifacts


def exported(recipe: Recipe, artifacts: dict[str, Artifact], out: Path) -> Artifact:
    out.mkdir()
    metrics = export.run(recipe, artifacts, out, silent_log())
    return write_manifest(out, "export", "key", metrics)


def test_export_then_parity(run: Any, tmp_path: Path) -> None:
    make_recipe, artifacts = run
    recipe = make_recipe(export={"gguf": [{"ftype": "F16"}, {"ftype": "Q8_0"}], "ship": "F16"})
    files = exported(recipe, artifacts, tmp_path / "export")
    assert set(files.files) == {"files.json", "tiny-F16.gguf", "tiny-Q8_0.gguf"}
    records = json.loads(files.file("files.json").read_text())
    assert [(r["file"], r["format"], r["ftype"]) for r in records] == [
        ("tiny-F16.gguf", "gguf", "F16"),
        ("tiny-Q8_0.gguf", "gguf", "Q8_0"),
    ]
    assert files.metrics == {f"{r['ftype']}_bytes": r["bytes"] for r in records}
    fields = gguf.GGUFReader(files.file("tiny-Q8_0.gguf")).fields
    written = {key.removeprefix("edgeft."): fields[key].contents() for key in fields if key.startswith("edgeft.")}
    expected = {key: str(value) for key, value in PROVENANCE.items()}
    assert written == {**{k: v for k, v in expected.items() if k != "edgeft_version"}, "version": "0.1.0"}

    (tmp_path / "parity").mkdir()
    limits = {"f16": {"top1": 0.9, "kl_mean": 5e-4}, "q8_0": {"top1": 0.5, "kl_mean": 5e-3}}
    recipe = make_recipe(
        export={"gguf": [{"ftype": "F16"}, {"ftype": "Q8_0"}], "ship": "F16"},
        parity={"prompts": 4, "n_gen": 8, "tolerance": limits},
    )
    metrics = parity.run(recipe, {**artifacts, "export": files}, tmp_path / "parity", silent_log())
    result = json.loads((tmp_path / "parity" / "parity.json").read_text())
    assert [row["form"] for row in result["rows"]] == ["adapter", "merged", "F16", "Q8_0"]
    assert result["prompts"] == 4
    shipped = result["rows"][2]
    assert metrics == {name: shipped[name] for name in ("kl_mean", "kl_p99", "top1_agreement", "greedy_prefix")}
    assert [path.name for path in (tmp_path / "parity").iterdir()] == ["parity.json"]


def test_a_fault_is_not_hidden_by_the_limits_of_small_files(run: Any, tmp_path: Path) -> None:
    """Only Q4_K_M is exported, so an unquantized file is made for the comparison alone."""
    make_recipe, artifacts = run
    loose = {family: {"top1": 0.0, "kl_mean": 10.0} for family in ("q8_0", "q4")}
    recipe = make_recipe(
        export={"gguf": [{"ftype": "Q4_K_M"}]},
        parity={"prompts": 4, "n_gen": 8, "tolerance": {**loose, "f16": {"top1": 0.9, "kl_mean": 5e-4}}},
    )
    files = exported(recipe, artifacts, tmp_path / "export")
    (tmp_path / "parity").mkdir()
    parity.run(recipe, {**artifacts, "export": files}, tmp_path / "parity", silent_log())
    result = json.loads((tmp_path / "parity" / "parity.json").read_text())
    assert [row["form"] for row in result["rows"]] == ["adapter", "merged", "F16 (not kept)", "Q4_K_M"]


def test_a_bad_file_fails_the_stage_and_leaves_the_numbers(run: Any, tmp_path: Path) -> None:
    make_recipe, artifacts = run
    recipe = make_recipe(export={"gguf": [{"ftype": "F16"}, {"ftype": "Q8_0"}]})
    out = tmp_path / "export"
    exported(recipe, artifacts, out)
    plant("unpermuted q/k", artifacts["merge"].path, tmp_path / "bad.gguf", "F32")
    quantize_gguf(tmp_path / "bad.gguf", out / "tiny-Q8_0.gguf", "Q8_0", n_threads=1)
    files = write_manifest(out, "export", "key", {})
    (tmp_path / "parity").mkdir()
    with pytest.raises(ParityFailed, match="first bad: Q8_0: kl_mean") as error:
        parity.run(recipe, {**artifacts, "export": files}, tmp_path / "parity", silent_log())
    assert "adapter" in str(error.value)
    result = json.loads((tmp_path / "parity" / "parity.json").read_text())
    assert result["first_bad"].startswith("Q8_0: kl_mean")
    assert [row["ok"] for row in result["rows"]] == [True, True, True, False]
    assert result["finding"]["name"] == "blk.0.attn_q.weight"
    assert "blk.0.attn_q.weight" in str(error.value)


def test_calibrated_files(run: Any, tmp_path: Path) -> None:
    """An importance matrix, a planned mix and error feedback: llama.cpp reads each, and says what it was made with."""
    make_recipe, artifacts = run
    entries = [
        {"ftype": "F16"},
        {"ftype": "Q4_0", "imatrix": True},
        {"ftype": "Q4_1", "rounding": "feedback"},
        {"ftype": "auto", "imatrix": True},
    ]
    loose = {family: {"top1": 0.0, "kl_mean": 10.0} for family in ("q8_0", "q4")}
    recipe = make_recipe(export={"gguf": entries, "calibration_tokens": 512}, parity={"prompts": 4, "tolerance": loose})
    files = exported(recipe, artifacts, tmp_path / "export")
    planned = json.loads(files.file("mix.json").read_text())["tensors"]
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(files.file("tiny-auto.gguf")).tensors}
    assert {name: kinds[name] for name in planned} == {name: option["kind"] for name, option in planned.items()}
    assert "quantize.imatrix.entries_count" in gguf.GGUFReader(files.file("tiny-Q4_0.gguf")).fields
    (tmp_path / "parity").mkdir()
    parity.run(recipe, {**artifacts, "export": files}, tmp_path / "parity", silent_log())
    rows = json.loads((tmp_path / "parity" / "parity.json").read_text())["rows"]
    assert [row["form"] for row in rows] == ["adapter", "merged", "F16", "Q4_0", "Q4_1", "auto"]
    assert all(row["kl_mean"] < 0.5 for row in rows[1:])


@pytest.mark.slow
def test_onnx_folders_beside_gguf_files(run: Any, tmp_path: Path) -> None:
    """Compared, measured and shown side by side; the ONNX folder ships."""
    make_recipe, artifacts = run
    loose = {family: {"top1": 0.0, "kl_mean": 10.0} for family in ("q8_0", "q4")}
    sections = {
        "export": {"gguf": [{"ftype": "F16"}], "onnx": [{"dtype": "int8"}, {"dtype": "int4"}], "ship": "int4-32"},
        "parity": {"prompts": 4, "n_gen": 8, "tolerance": {**loose, "f16": {"top1": 0.9, "kl_mean": 5e-4}}},
        "bench": {"n_threads": 1, "files": "all", "max_new_tokens": 8, "n_ctx": 128,
                  "latency": {"prompts": 1, "n_gen": 4, "repetitions": 1, "warmup": 0}},
    }  # fmt: skip
    recipe = make_recipe(**sections)
    inputs = {**artifacts, "export": exported(recipe, artifacts, tmp_path / "export")}
    for stage in (parity, bench):
        name = stage.__name__.rpartition(".")[2]
        (tmp_path / name).mkdir()
        metrics = stage.run(recipe, inputs, tmp_path / name, silent_log())
        inputs[name] = write_manifest(tmp_path / name, name, "key", metrics)
    rows = json.loads(inputs["parity"].file("parity.json").read_text())["rows"]
    assert [row["form"] for row in rows] == ["adapter", "merged", "F16", "fp32 (not kept)", "int8-32", "int4-32"]
    assert rows[3]["logit_difference_max"] < 1e-3
    assert inputs["parity"].metrics["kl_mean"] == rows[5]["kl_mean"]
    measured = json.loads(inputs["bench"].file("bench.json").read_text())
    others = json.loads(inputs["bench"].file("others.json").read_text())
    assert [each["file"] for each in (measured, *others)] == [
        "int4-32/model.onnx",
        "tiny-F16.gguf",
        "int8-32/model.onnx",
    ]
    assert measured["latency"]["host"]["backend"].keys() == {"onnxruntime"}
    (tmp_path / "report").mkdir()
    report.run(recipe, inputs, tmp_path / "report", silent_log())
    shown = json.loads((tmp_path / "report" / "report.json").read_text())["candidates"]["rows"]
    assert [(row["label"], row["ships"]) for row in shown] == [("F16", False), ("int8-32", False), ("int4-32", True)]


def test_a_bad_onnx_folder_fails_the_stage_and_is_bisected(run: Any, tmp_path: Path) -> None:
    make_recipe, artifacts = run
    recipe = make_recipe(export={"gguf": [{"ftype": "F16"}], "onnx": [{"dtype": "fp32"}]})
    out = tmp_path / "export"
    exported(recipe, artifacts, out)
    path = out / "fp32" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    norm = next(node for node in model.graph.node if node.name == "blk.0.attn_norm")
    next(each for each in norm.attribute if each.name == "epsilon").f = 0.5
    onnx.save(model, path)
    files = write_manifest(out, "export", "key", {})
    (tmp_path / "parity").mkdir()
    with pytest.raises(ParityFailed, match="first bad: fp32: kl_mean"):
        parity.run(recipe, {**artifacts, "export": files}, tmp_path / "parity", silent_log())
    finding = json.loads((tmp_path / "parity" / "parity.json").read_text())["finding"]
    assert (finding["kind"], finding["name"]) == ("node", "layers.0.attention.qkv")
