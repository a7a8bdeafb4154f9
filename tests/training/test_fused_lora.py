"""Fused LoRA against peft's own forward and autograd."""

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from edgeft.training.attention import unpacked_attention, use_packed_attention
from edgeft.training.batches import Batch, TokenSet, pack
from edgeft.training.fused_lora import fuse_lora
from edgeft.training.losses import next_token_loss_sum

SHAPE = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1}  # fmt: skip
NEOX = {k: v for k, v in SHAPE.items() if k != "num_key_value_heads"}
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, SHAPE),
    "llama-bias": (LlamaForCausalLM, LlamaConfig, SHAPE | {"attention_bias": True, "mlp_bias": True}),
    "llama-gelu": (LlamaForCausalLM, LlamaConfig, SHAPE | {"hidden_act": "gelu"}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, SHAPE),
    "mistral": (MistralForCausalLM, MistralConfig, SHAPE | {"sliding_window": None, "head_dim": 16}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, SHAPE | {"head_dim": 8}),
    "neox": (GPTNeoXForCausalLM, GPTNeoXConfig, NEOX),
}
WHOLE = {"llama", "llama-bias", "qwen2", "mistral"}


def _model(name: str = "llama", dtype: torch.dtype = torch.float32, **lora: Any) -> PeftModel:
    torch.manual_seed(0)
    model_class, config_class, shape = MODELS[name]
    model = model_class(config_class(**shape)).to(dtype)
    use_packed_attention(model)
    config = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | lora
    adapted = get_peft_model(model, LoraConfig(**config))
    torch.manual_seed(1)
    for key, parameter in adapted.named_parameters():
        if "lora_" in key:
            parameter.data = torch.randn_like(parameter.data) * 0.1
        elif key.endswith("bias") or "norm" in key:
            parameter.data += torch.randn_like(parameter.data) * 0.2
    return adapted.train()


def _batch() -> Batch:
    rng = np.random.default_rng(1)
    examples = [(rng.integers(0, 97, n).tolist(), (rng.random(n) < 0.6).tolist()) for n in (3, 40, 17, 16, 5, 29)]
    return pack(TokenSet.build(examples), np.arange(len(examples)))


def _gradients(model: PeftModel, autocast: torch.dtype | None = None) -> tuple[float, dict[str, torch.Tensor]]:
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        loss = next_token_loss_sum(model, _batch())
    model.zero_grad()
    loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), grads


def _distance(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    assert got.keys() == wanted.keys()
    difference = sum(float((got[n].double() - wanted[n].double()).square().sum()) for n in wanted)
    return (difference / sum(float(w.double().square().sum()) for w in wanted.values())) ** 0.5


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("lora", [{}, {"use_rslora": True}, {"target_modules": ["q_proj", "v_proj", "down_proj"]}])
def test_loss_and_every_gradient_equal_peft(name: str, lora: dict[str, Any]) -> None:
    if name == "neox" and "target_modules" in lora:
        lora = {"target_modules": ["query_key_value"]}
    model = _model(name, **lora)
    loss, wanted = _gradients(model)
    fusion = fuse_lora(model)
    assert fusion.fused > 0
    assert not fusion.kept
    assert fusion.whole_layers == (2 if name in WHOLE else 0)
    got_loss, got = _gradients(model)
    assert got_loss == pytest.approx(loss, rel=1e-5)
    for key, gradient in wanted.items():
        assert torch.linalg.norm(got[key] - gradient) <= 1e-5 * torch.linalg.norm(gradient), key


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_bf16_base_with_fp32_adapters_stays_near_float32(autocast: torch.dtype | None) -> None:
    _, wanted = _gradients(_model())
    model = _model(dtype=torch.bfloat16)
    exact = _model()  # the base rounded to bf16, computed in float32
    exact.load_state_dict(model.state_dict())
    _, rounded = _gradients(exact)
    fuse_lora(model)
    _, got = _gradients(model, autocast)
    assert all(g.dtype == torch.float32 for g in got.values())
    assert _distance(got, rounded) <= 0.03
    assert _distance(got, wanted) <= 0.05  # with the rounding of the weights themselves


def test_nf4_base_equals_peft_on_it() -> None:
    from bitsandbytes.nn import Linear4bit, Params4bit

    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SHAPE | {"hidden_size": 64, "intermediate_size": 64}))
    for layer in base.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, module in list(part.named_children()):
                if isinstance(module, torch.nn.Linear):
                    packed = Linear4bit(module.in_features, module.out_features, bias=False, quant_type="nf4",
                                        compute_dtype=torch.float32, compress_statistics=True)  # fmt: skip
                    packed.weight = Params4bit(module.weight.data, requires_grad=False, quant_type="nf4")
                    setattr(part, name, packed.to("cpu"))
    base.is_loaded_in_4bit = True
    use_packed_attention(base)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")).train()
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            parameter.data = torch.randn_like(parameter.data) * 0.1
    loss, wanted = _gradients(model)
    fusion = fuse_lora(model)
    assert (fusion.fused, fusion.whole_layers) == (14, 2)
    got_loss, got = _gradients(model)
    assert got_loss == pytest.approx(loss, rel=1e-5)
    assert _distance(got, wanted) <= 1e-5


@pytest.mark.parametrize(
    ("lora", "reason"),
    [
        ({"use_dora": True}, "DoRA or another variant"),
        ({"lora_dropout": 0.1}, "lora_dropout"),
        ({"bias": "all"}, "a trained bias"),
        ({"lora_bias": True}, "a trained bias"),
    ],
)
def test_what_cannot_be_fused_keeps_peft_and_is_said(lora: dict[str, Any], reason: str) -> None:
    model = _model("llama-bias", **lora).eval()  # without the noise of dropout
    loss, wanted = _gradients(model)
    fusion = fuse_lora(model)
    assert (fusion.fused, fusion.whole_layers, dict(fusion.kept)) == (0, 0, {reason: 14})
    assert fusion.describe() == f"fused LoRA: 0 layers; 14 keep peft's forward (14 for {reason})"
    got_loss, got = _gradients(model)
    assert got_loss == loss
    assert _distance(got, wanted) == 0.0


def test_modules_to_save_train_beside_fused_layers() -> None:
    model = _model(modules_to_save=["input_layernorm", "embed_tokens"], target_modules=["q_proj", "up_proj"])
    loss, wanted = _gradients(model)
    assert fuse_lora(model).whole_layers == 0
    got_loss, got = _gradients(model)
    assert got_loss == pytest.approx(loss, rel=1e-5)
    assert _distance(got, wanted) <= 1e-5
    assert any("embed_tokens" in name for name in got)


def test_disabling_and_switching_adapters_works_after_fusing() -> None:
    model = _model()
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", lora_bias=False))
    losses = {}
    for stage in ("plain", "fused"):
        if stage == "fused":
            fuse_lora(model)
        with torch.no_grad():
            for name in ("default", "second"):
                model.set_adapter(name)
                losses[stage, name] = float(next_token_loss_sum(model, _batch()))
            with model.disable_adapter():
                losses[stage, "off"] = float(next_token_loss_sum(model, _batch()))
    for name in ("default", "second", "off"):
        assert losses["fused", name] == pytest.approx(losses["plain", name], rel=1e-5), name
    assert losses["plain", "off"] != pytest.approx(losses["plain", "default"], rel=1e-3)


def test_generation_and_merging_work_after_fusing() -> None:
    model, prompt = _model().eval(), torch.tensor([[5, 6, 7, 8]])
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with unpacked_attention(model.get_base_model()):
        wanted = model.generate(input_ids=prompt, **settings)
        fuse_lora(model)
        assert model.generate(input_ids=prompt, **settings).tolist() == wanted.tolist()
        model.merge_adapter()
        assert model.generate(input_ids=prompt, **settings).tolist() == wanted.tolist()
    model.unmerge_adapter()
    fuse_lora(model)  # a second time changes nothing
    next_token_loss_sum(model, _batch()).backward()


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 0.75), (torch.bfloat16, 0.65)])
def test_fused_layers_keep_less_for_the_backward_pass(dtype: torch.dtype, share: float) -> None:
    def kept(model: PeftModel) -> int:
        seen: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = next_token_loss_sum(model, _batch())
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        assert loss.requires_grad
        return sum(size for pointer, size in seen.items() if pointer not in weights)

    model = _model(dtype=dtype)
    before = kept(model)
    fuse_lora(model)
    assert kept(model) < share * before
