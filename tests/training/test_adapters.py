"""Adapters: attached as peft does, merged as the formula says."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from edgeft.errors import ModelError
from edgeft.sections import Lora
from edgeft.training.adapters import attach_lora, merge_adapter, nf4_config, save_adapter
from edgeft.training.models import load_model
from tests.tiny import make_tiny_llama


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("base"))


def _adapter(base: Path, folder: Path, **lora: object) -> Path:
    model = attach_lora(load_model(base), Lora(**{"r": 4, "lora_alpha": 12, **lora}))
    torch.manual_seed(1)
    with torch.no_grad():  # a fresh lora_B is zero, and a zero update would prove nothing
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    save_adapter(model, folder, "somewhere")
    return folder


@pytest.mark.parametrize("rslora", [False, True])
def test_merge_equals_the_formula_in_float64_and_peft(base: Path, tmp_path: Path, rslora: bool) -> None:
    adapter = _adapter(base, tmp_path / "adapter", use_rslora=rslora)
    (tmp_path / "merged").mkdir()
    merge_adapter(base, adapter, tmp_path / "merged", "float32")
    merged = load_file(tmp_path / "merged" / "model.safetensors")

    low_rank = load_file(adapter / "adapter_model.safetensors")
    source = load_file(base / "model.safetensors")
    scale = 12 / (4**0.5 if rslora else 4)
    changed = 0
    for name, weight in source.items():
        key = "base_model.model." + name.removesuffix(".weight")
        expected = weight.double()
        if key + ".lora_A.weight" in low_rank:
            expected += scale * (low_rank[key + ".lora_B.weight"].double() @ low_rank[key + ".lora_A.weight"].double())
            changed += 1
        assert torch.allclose(merged[name].double(), expected, rtol=1e-6, atol=1e-6), name
    assert changed == 14  # seven linear layers in each of two blocks

    theirs = PeftModel.from_pretrained(load_model(base), str(adapter)).merge_and_unload()
    for name, weight in theirs.state_dict().items():
        if name in merged:
            assert torch.allclose(merged[name], weight, rtol=1e-5, atol=1e-6), name


def test_the_saved_adapter_names_no_folder_of_this_machine(base: Path, tmp_path: Path) -> None:
    adapter = _adapter(base, tmp_path / "adapter")
    text = (adapter / "adapter_config.json").read_text()
    assert json.loads(text)["base_model_name_or_path"] == "somewhere"
    assert str(base) not in text


def test_an_adapter_of_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = _adapter(base, tmp_path / "adapter")
    for name, config, message in (
        ("wider", {"hidden_size": 128}, "belongs to another base"),
        ("shallower", {"num_hidden_layers": 1}, r"has no model\.layers\.1\..*belongs to another base"),
    ):
        other = make_tiny_llama(tmp_path / name, **config)
        (tmp_path / f"{name}-merged").mkdir()
        with pytest.raises(ModelError, match=message):
            merge_adapter(other, adapter, tmp_path / f"{name}-merged", "float32")


def test_unknown_target_modules_are_named(base: Path) -> None:
    with pytest.raises(ModelError, match=r"target_modules: \['c_attn'\] fits nothing.*down_proj.*q_proj"):
        attach_lora(load_model(base), Lora(target_modules=["c_attn"]))


def test_the_nf4_base_stays_close_and_frozen(base: Path) -> None:
    """QLoRA on the CPU: weights in 4 bits, only adapters train, outputs near the 16-bit ones."""
    ids = torch.arange(3, 40)[None]
    plain = load_model(base)
    model = attach_lora(load_model(base, quantization_config=nf4_config("float32")), Lora(r=4, lora_alpha=8))
    layer = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    assert layer.weight.dtype == torch.uint8
    assert {n.split(".")[-3] for n, p in model.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    model(input_ids=ids, labels=ids).loss.backward()
    cosine = torch.nn.functional.cosine_similarity(
        plain(input_ids=ids).logits.flatten(), model(input_ids=ids).logits.flatten(), dim=0
    )
    assert cosine > 0.9
