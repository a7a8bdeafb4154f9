"""Recomputed activations change memory, not numbers."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from edgeft.errors import ModelError, RecipeError
from edgeft.training.activation_checkpointing import apply_checkpointing, memory_budget, model_shape
from edgeft.training.fused_lora import fuse_lora
from edgeft.training.losses import next_token_loss_sum
from edgeft.training_memory import ModelShape, choose_checkpointing, parse_memory, predict_peak
from tests.training.test_fused_lora import SHAPE, _batch, _distance, _gradients, _model

SMOLLM2 = ModelShape(
    hidden=576, inner=1536, layers=30, heads=9, kv_heads=3, head_width=64, weight_bytes=270_000_000,
    trained=4_900_000, element_bytes=2, rank=16,
)  # fmt: skip


@pytest.mark.parametrize("fused", [False, True])
def test_loss_and_gradients_stay_and_less_is_kept(fused: bool) -> None:
    model = _model()
    if fused:
        fuse_lora(model)
    loss, wanted = _gradients(model)
    kept = []
    for layers in (0, 1, 2):
        apply_checkpointing(model, layers)
        got_loss, got = _gradients(model)
        assert got_loss == loss
        assert _distance(got, wanted) <= 1e-6
        kept.append(_kept_bytes(model))
    assert kept[0] > 1.2 * kept[1] > 1.44 * kept[2]


def _kept_bytes(model: torch.nn.Module) -> int:
    seen: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = next_token_loss_sum(model, _batch())
    assert loss.requires_grad
    return sum(t.untyped_storage().nbytes() for pointer, t in seen.items() if pointer not in own)


def test_prediction_falls_with_every_recomputed_layer_and_rises_with_tokens() -> None:
    peaks = [predict_peak(SMOLLM2, 4096, n) for n in range(30)]
    assert peaks == sorted(peaks, reverse=True)
    assert predict_peak(SMOLLM2, 8192, 0) > peaks[0]
    assert predict_peak(replace(SMOLLM2, fused=False), 4096, 0) > predict_peak(SMOLLM2, 4096, 0)
    assert predict_peak(replace(SMOLLM2, element_bytes=4), 4096, 0) > predict_peak(SMOLLM2, 4096, 0)


def test_choice_is_the_fewest_layers_that_fit() -> None:
    whole = predict_peak(SMOLLM2, 8192, 0)
    assert choose_checkpointing(SMOLLM2, 8192, whole).layers == 0
    choice = choose_checkpointing(SMOLLM2, 8192, 3_000_000_000)
    assert 0 < choice.layers < 30
    assert choice.fits
    assert choice.peak_bytes <= 3_000_000_000 < predict_peak(SMOLLM2, 8192, choice.layers - 1)
    hopeless = choose_checkpointing(SMOLLM2, 8192, 500_000_000)
    assert (hopeless.layers, hopeless.fits) == (29, False)


def test_shape_is_read_from_the_model() -> None:
    model = _model()
    shape = model_shape(model, torch.bfloat16, rank=4)
    assert (shape.hidden, shape.inner, shape.layers, shape.heads, shape.kv_heads) == (32, 48, 2, 4, 2)
    assert (shape.head_width, shape.element_bytes, shape.rank) == (8, 2, 4)
    assert shape.trained == sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 * 10**9), ("1.5 GiB", 3 * 2**29), ("800M", 800 * 10**6), ("2 gb", 2 * 10**9), ("1000000", 10**6)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "much", "-4GB", "4 bananas", "0GB", "4iB", "4,5GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"train.memory_budget: .* is no size; write it like 4GB"):
        parse_memory(text)


def test_without_a_budget_it_is_a_share_of_what_is_free() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    assert memory_budget("2GB", model) == 2 * 10**9
    assert memory_budget(None, model) > 0


def test_more_layers_than_there_are_is_refused() -> None:
    with pytest.raises(ModelError, match=r"has 2 layers that can be computed again, not 3"):
        apply_checkpointing(_model(), 3)
