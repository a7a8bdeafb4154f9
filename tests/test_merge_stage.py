"""The merge stage: adapters, models trained in full, classifiers, and bases that were swapped."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from edgeft.artifact import Artifact, write_manifest
from edgeft.console import silent_log
from edgeft.errors import ModelError
from edgeft.recipe import Recipe
from edgeft.sections import Lora
from edgeft.stages import merge
from edgeft.training.adapters import attach_lora, nf4_config, save_adapter
from edgeft.training.batches import TokenSet
from edgeft.training.models import base_sha256, load_model
from tests.tiny import make_tiny_llama, tiny_tokenizer
from tests.tiny_encoder import make_tiny_encoder


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Path, Artifact]:
    """A base, and the data stage's artifact."""
    base, data = make_tiny_llama(tmp_path / "base"), tmp_path / "data"
    tiny_tokenizer().save_pretrained(data / "tokenizer")
    for split in ("train", "validation", "test"):
        (data / f"{split}.jsonl").touch()
    tokens = TokenSet.build([(list(range(3, 30)), [False] * 5 + [True] * 22)])
    tokens.save(data / "tokens-validation.npz")
    return base, write_manifest(data, "data", "key", {})


def _recipe(base: Path, method: str, **section: Any) -> Recipe:
    data = {split: f"{split}.jsonl" for split in ("train", "validation", "test")}
    content = {
        "name": "t",
        "model": {"base": str(base)},
        "data": data,
        "train": {"method": method, "torch_dtype": "float32"},
        "merge": section,
    }
    return Recipe.build(content, base.parent)


def _trained(folder: Path, base: Path, method: str) -> Artifact:
    folder.mkdir(exist_ok=True)
    (folder / "summary.json").write_text(json.dumps({"method": method, "base_sha256": base_sha256(base)}))
    return write_manifest(folder, "train", "key", {})


def test_auto_writes_both_losses_and_one_model(prepared: tuple[Path, Artifact], tmp_path: Path) -> None:
    base, data = prepared
    model = attach_lora(load_model(base, quantization_config=nf4_config("float32")), Lora(r=2))
    save_adapter(model, tmp_path / "train" / "adapter", "it")
    train = _trained(tmp_path / "train", base, "qlora")
    (tmp_path / "out").mkdir()
    recipe = _recipe(base, "qlora", merge_base="auto", dtype="bfloat16")
    metrics = merge.run(recipe, {"data": data, "train": train}, tmp_path / "out", silent_log())
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert metrics["eval_loss_4bit"] == provenance["eval_loss_4bit"] != metrics["eval_loss_16bit"]
    assert provenance["merge_base"] in ("16bit", "4bit")
    assert {p.dtype for p in load_model(tmp_path / "out", "bfloat16").parameters()} == {torch.bfloat16}


def test_another_base_than_the_adapter_was_trained_on_is_refused(
    prepared: tuple[Path, Artifact], tmp_path: Path
) -> None:
    base, data = prepared
    train = _trained(tmp_path / "train", base, "lora")
    other = make_tiny_llama(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match=r"sha256 .* the adapter was trained on .*give the base it was trained on"):
        merge.run(_recipe(other, "lora"), {"data": data, "train": train}, tmp_path, silent_log())


@pytest.mark.parametrize("classifier", [False, True])
def test_a_whole_model_is_cast(prepared: tuple[Path, Artifact], tmp_path: Path, classifier: bool) -> None:
    base, data = prepared
    folder = tmp_path / "train" / "model"
    if classifier:
        encoder = make_tiny_encoder(tmp_path / "encoder", "bert")
        AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=3).save_pretrained(folder)
    else:
        shutil.copytree(base, folder)
    train = _trained(tmp_path / "train", base, "lora" if classifier else "full")
    (tmp_path / "out").mkdir()
    recipe = _recipe(base, "full", dtype="float16")
    metrics = merge.run(recipe, {"data": data, "train": train}, tmp_path / "out", silent_log())
    before, after = ((p / "model.safetensors").stat().st_size for p in (folder, tmp_path / "out"))
    assert metrics["size_bytes"] == after < 0.6 * before
    if classifier:
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_moved_inputs_make_the_same_file(tmp_path: Path, prepared: tuple[Path, Artifact]) -> None:
    """What the model says about where it comes from has no path of this machine in it."""
    base, data = prepared
    train = _trained(tmp_path / "train", base, "full")
    shutil.copytree(base, tmp_path / "train" / "model")
    shutil.copytree(base, tmp_path / "moved" / "base")
    found = []
    for at, folder in enumerate((base, tmp_path / "moved" / "base")):
        (tmp_path / f"out{at}").mkdir()
        recipe = _recipe(folder, "full")
        moved = recipe.data.model_copy(update={"train": f"/elsewhere/{at}.jsonl"})
        merge.run(
            recipe.model_copy(update={"data": moved}),
            {"data": data, "train": train},
            tmp_path / f"out{at}",
            silent_log(),
        )
        found.append((tmp_path / f"out{at}" / "provenance.json").read_bytes())
    assert found[0] == found[1]
    assert json.loads(found[0])["base"] == "base"
    assert str(tmp_path).encode() not in found[0]
