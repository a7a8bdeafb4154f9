"""Adapters: every kind trains, is saved for the untouched base, and refuses what it cannot do."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import PeftModel
from peft.utils.loftq_utils import _low_rank_decomposition
from safetensors.torch import load_file

from edgeft.errors import ModelError
from edgeft.sections import Lora
from edgeft.training.adapters import attach_lora, nf4_config, save_adapter
from edgeft.training.merging import merge_adapter
from edgeft.training.models import load_model
from tests.tiny import make_tiny_llama

IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("base"))


def two_steps(model: Any) -> torch.Tensor:
    """Train; the logits after it."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return logits(model)


def logits(model: Any) -> torch.Tensor:
    """As in training: in `eval` bitsandbytes multiplies 4-bit weights on the CPU by other, coarser kernels."""
    model.train()
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "named targets": {"target_modules": ["q_proj", "v_proj"]},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa with rslora": {"init_lora_weights": "pissa", "use_rslora": True},
    "pissa with dora": {"init_lora_weights": "pissa", "use_dora": True},
    "norms": {"modules_to_save": ["input_layernorm", "norm"]},
    "a whole layer": {"modules_to_save": ["down_proj"], "target_modules": ["q_proj"]},
    "pissa with embeddings": {"init_lora_weights": "pissa", "modules_to_save": ["embed_tokens", "lm_head"]},
    "embeddings alone": {"modules_to_save": ["embed_tokens"]},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("tied", [True, False])
def test_saved_and_merged_it_is_the_model_that_was_trained(tmp_path: Path, variant: str, tied: bool) -> None:
    """Against the trained model itself and against peft: loaded on the untouched base, and merged by it."""
    base = make_tiny_llama(tmp_path / "base", tie_word_embeddings=tied)
    before = logits(load_model(base))
    model = attach_lora(load_model(base), Lora(r=4, lora_alpha=12, **VARIANTS[variant]))
    assert torch.allclose(logits(model), before, atol=1e-4)  # every kind starts as the base
    trained = two_steps(model)
    assert not torch.allclose(trained, before, atol=1e-2)
    save_adapter(model, tmp_path / "adapter", "somewhere")

    theirs = PeftModel.from_pretrained(load_model(base), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(theirs), trained, rtol=1e-5, atol=1e-5)
    config = merge_adapter(base, tmp_path / "adapter", _beside(base, tmp_path / "merged"), "float32")
    assert config == {}  # a tied head stays tied
    ours = load_model(tmp_path / "merged")
    torch.testing.assert_close(logits(ours), trained, rtol=1e-5, atol=1e-5)
    expected = theirs.merge_and_unload().state_dict()
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("variant", ["lora", "dora", "loftq", "embeddings"])
def test_on_nf4_saved_and_merged_it_is_the_model_that_was_trained(base: Path, tmp_path: Path, variant: str) -> None:
    lora: dict[str, Any] = {
        "lora": {},
        "dora": {"use_dora": True},
        "loftq": {"init_lora_weights": "loftq"},
        "embeddings": {"modules_to_save": ["embed_tokens", "lm_head"]},
    }[variant]
    model = attach_lora(_on_nf4(base), Lora(r=4, lora_alpha=12, **lora))
    trained = two_steps(model)
    save_adapter(model, tmp_path / "adapter", "somewhere")
    theirs = PeftModel.from_pretrained(_on_nf4(base), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(theirs), trained, rtol=1e-5, atol=1e-5)
    merge_adapter(base, tmp_path / "adapter", _beside(base, tmp_path / "merged"), "float32", "float32")
    torch.testing.assert_close(logits(load_model(tmp_path / "merged")), trained, rtol=1e-5, atol=1e-5)


def test_pissa_starts_as_peft_starts_it(base: Path) -> None:
    """The base's principal components, taken out of the base (Meng et al. 2024, equations 3 and 4)."""
    weight = load_model(base).model.layers[0].mlp.up_proj.weight.detach()
    layer = attach_lora(load_model(base), Lora(r=4, lora_alpha=12, init_lora_weights="pissa")).get_base_model()
    layer = layer.model.layers[0].mlp.up_proj
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    principal = (u[:, :4] * s[:4]) @ vh[:4]
    update = 3 * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight)
    torch.testing.assert_close(update.double(), principal, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.base_layer.weight.double(), weight.double() - principal, rtol=1e-4, atol=1e-5)


def test_loftq_starts_nearer_to_the_base_than_nf4_alone(base: Path) -> None:
    """scale · B A is the rank-r part of what NF4 lost, as peft decomposes it."""
    model = attach_lora(_on_nf4(base), Lora(r=4, lora_alpha=12, init_lora_weights="loftq"))
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        layer = model.get_base_model().get_submodule(name)
        held = dequantize_4bit(layer.base_layer.weight.data, layer.base_layer.weight.quant_state)
        lost = load_file(base / "model.safetensors")[f"{name}.weight"] - held
        expected = _low_rank_decomposition(lost, reduced_rank=4)
        update = 3 * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight)
        torch.testing.assert_close(update, expected["L"] @ expected["R"], rtol=1e-4, atol=1e-5)
        assert (lost - update).norm() < 0.95 * lost.norm()


def test_what_is_trained_whole_beside_a_bfloat16_base_is_float32(base: Path) -> None:
    model = attach_lora(load_model(base, "bfloat16"), Lora(r=4, modules_to_save=["lm_head"]))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    inner = model.get_base_model()
    assert inner.get_input_embeddings().weight.data_ptr() == inner.get_output_embeddings().weight.data_ptr()


def test_the_saved_adapter_names_no_folder_of_this_machine(base: Path, tmp_path: Path) -> None:
    save_adapter(attach_lora(load_model(base), Lora(r=4)), tmp_path / "adapter", "somewhere")
    text = (tmp_path / "adapter" / "adapter_config.json").read_text()
    assert json.loads(text)["base_model_name_or_path"] == "somewhere"
    assert str(base) not in text


@pytest.mark.parametrize(
    ("quantized", "lora", "message"),
    [
        (False, {"target_modules": ["c_attn"]}, r"target_modules: \['c_attn'\] fits nothing.*down_proj.*q_proj"),
        (False, {"target_modules": ["q_proj", "lm_head"]}, r"lm_head shares its weights.*modules_to_save"),
        (False, {"modules_to_save": ["nonsense"]}, r"modules_to_save: nonsense is nothing.*embed_tokens"),
        (
            False,
            {"target_modules": ["q_proj", "k_proj"], "modules_to_save": ["k_proj"]},
            "k_proj is in target_modules and in modules_to_save",
        ),
        (False, {"init_lora_weights": "loftq"}, r"init_lora_weights: loftq.*train\.method: qlora"),
        (True, {"init_lora_weights": "pissa"}, r"init_lora_weights: pissa.*use method: lora"),
        (True, {"init_lora_weights": "loftq", "use_dora": True}, r"use_dora.*init_lora_weights: loftq"),
        (True, {"modules_to_save": ["down_proj"]}, r"modules_to_save: down_proj is held in 4 bits.*qlora"),
    ],
)
def test_what_cannot_be_is_refused_by_its_keys(base: Path, quantized: bool, lora: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        attach_lora(_on_nf4(base) if quantized else load_model(base), Lora(**lora))


def test_the_nf4_base_stays_close_and_frozen(base: Path) -> None:
    """QLoRA on the CPU: weights in 4 bits, only adapters train, outputs near the 16-bit ones."""
    model = attach_lora(_on_nf4(base), Lora(r=4, lora_alpha=8))
    layer = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    assert layer.weight.dtype == torch.uint8
    assert {n.split(".")[-3] for n, p in model.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    model(input_ids=IDS, labels=IDS).loss.backward()
    plain = logits(load_model(base)).flatten()
    assert torch.nn.functional.cosine_similarity(plain, logits(model).flatten(), dim=0) > 0.9


def _on_nf4(base: Path) -> Any:
    return load_model(base, quantization_config=nf4_config("float32"))


def _beside(base: Path, folder: Path) -> Path:
    """A model folder that lacks only its weights."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder
