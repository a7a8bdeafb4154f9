"""Choosing the base an adapter goes into: by the kind of run, or by the validation loss of both."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeft.console import silent_log
from edgeft.errors import ModelError
from edgeft.sections import Lora, Merge, Train
from edgeft.training.adapters import attach_lora, nf4_config, save_adapter
from edgeft.training.batches import TokenSet
from edgeft.training.merge_base import merge_into_chosen_base
from edgeft.training.models import load_model
from tests.tiny import make_tiny_llama

TOKENS = TokenSet.build([(list(range(3 + n, 30 + n)), [False] * 5 + [True] * 22) for n in range(4)])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(attach_lora(load_model(base, quantization_config=nf4_config("float32")), Lora(r=2)), folder, "it")
    return folder


def _merge(
    base: Path, adapter: Path, out: Path, train: Train, wanted: Any, tokens: TokenSet = TOKENS
) -> dict[str, Any]:
    def complete(folder: Path, changes: dict[str, Any]) -> None:
        assert changes == {}
        for path in base.glob("*.json"):
            shutil.copyfile(path, folder / path.name)

    out.mkdir()
    merge = Merge(merge_base=wanted)
    return merge_into_chosen_base(train, merge, base, adapter, out, tokens, silent_log(), complete=complete)


@pytest.mark.parametrize(
    ("method", "start", "wanted", "expected"),
    [
        ("lora", "default", "auto", "16bit"),
        ("lora", "default", "4bit", "16bit"),
        ("qlora", "default", "16bit", "16bit"),
        ("qlora", "default", "4bit", "4bit"),
        ("qlora", "loftq", "16bit", "4bit"),
        ("qlora", "loftq", "auto", "4bit"),
    ],
)
def test_the_kind_of_run_decides(
    base: Path, adapter: Path, tmp_path: Path, method: Any, start: Any, wanted: str, expected: str
) -> None:
    train = Train(method=method, torch_dtype="float32", lora=Lora(init_lora_weights=start))
    assert _merge(base, adapter, tmp_path / "out", train, wanted) == {"merge_base": expected}
    merged = load_model(tmp_path / "out").model.layers[0].mlp.up_proj.weight
    same = torch.equal(merged, load_model(base).model.layers[0].mlp.up_proj.weight)
    assert same == (expected == "16bit")


def test_auto_keeps_the_lower_validation_loss(base: Path, adapter: Path, tmp_path: Path) -> None:
    """The losses against transformers' own, on either merged model."""
    train = Train(method="qlora", torch_dtype="float32")
    chosen = _merge(base, adapter, tmp_path / "out", train, "auto")
    losses = {}
    for name in ("16bit", "4bit"):
        _merge(base, adapter, tmp_path / name, train, name)
        model, total = load_model(tmp_path / name), 0.0
        for at in range(len(TOKENS)):
            ids = TOKENS.pack(np.array([at])).input_ids
            labels = ids.clone()
            labels[:, :5] = -100
            total += model(input_ids=ids, labels=labels).loss.item() / len(TOKENS)
        losses[name] = total
        assert chosen[f"eval_loss_{name}"] == pytest.approx(total, rel=1e-5)
    assert chosen["merge_base"] == min(losses, key=lambda name: losses[name])
    kept = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert kept == (tmp_path / chosen["merge_base"] / "model.safetensors").read_bytes()
    assert not any(path.is_dir() for path in (tmp_path / "out").iterdir())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"


def test_auto_without_validation_examples_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"merge_base: auto measures on data\.validation, which is empty"):
        _merge(
            base, adapter, tmp_path / "out", Train(method="qlora", torch_dtype="float32"), "auto", TokenSet.build([])
        )
