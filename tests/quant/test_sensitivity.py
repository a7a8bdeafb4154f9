"""Moments and costs against what really happens to the output of a model when its weights are rounded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import PreTrainedModel

from edgeft.console import silent_log
from edgeft.errors import ModelError, UsageError
from edgeft.quant.auto import GgufTensor, auto_mix
from edgeft.quant.ggml import GgmlType
from edgeft.quant.grids.fake import round_rows
from edgeft.quant.moments import Matrix, collect_moments
from edgeft.quant.planner import tensor_bytes
from edgeft.quant.sensitivity import log_probabilities, mean_divergence, mix_options, role_of
from tests.tiny import make_tiny_llama

WIDTH = 64
LAYER = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
SOURCES = {"token_embd.weight": ["model.embed_tokens.weight"]} | {
    f"blk.{layer}.{ours}.weight": [f"model.layers.{layer}.{theirs}.weight"]
    for layer in range(2)
    for ours, theirs in LAYER.items()
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    folder = make_tiny_llama(tmp_path_factory.mktemp("tiny"), initializer_range=0.15)
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return loaded


def sequences(seed: int, n: int = 24, length: int = 48) -> list[list[int]]:
    return np.random.default_rng(seed).integers(3, 300, (n, length)).tolist()


@pytest.fixture(scope="module")
def matrices(model: PreTrainedModel) -> dict[str, Matrix]:
    return collect_moments(model, sequences(0), SOURCES, log=silent_log())


def test_moments_are_those_of_the_gradient_of_drawn_tokens(model: PreTrainedModel) -> None:
    """One sequence, float64: the gradient of the loss by the output of a layer, by autograd on that output."""
    ids = sequences(3, n=1)
    name = "blk.1.ffn_up.weight"
    found = collect_moments(model, ids, {name: SOURCES[name]}, seed=5, log=silent_log())[name]
    kept: dict[str, torch.Tensor] = {}

    def keep(_: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        kept["x"], kept["y"] = args[0].detach()[0].double(), output.detach().requires_grad_()
        return kept["y"]

    handle = model.get_submodule("model.layers.1.mlp.up_proj").register_forward_hook(keep)
    logits = model(torch.tensor(ids)).logits[0]
    handle.remove()
    drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=torch.Generator().manual_seed(5))[:, 0]
    (gradient,) = torch.autograd.grad(-logits.log_softmax(-1).gather(1, drawn[:, None]).sum(), kept["y"])
    g, x = gradient[0].double(), kept["x"]
    sizes = (g**2).sum(dim=1)
    (term,) = found.terms
    np.testing.assert_allclose(term.rows, (g**2).mean(dim=0), rtol=1e-4)
    expected = torch.einsum("t,ti,tj->ij", sizes, x, x) / sizes.sum()
    np.testing.assert_allclose(term.columns, expected, rtol=1e-3, atol=1e-6 * float(expected.abs().max()))


def test_tied_embeddings_are_used_twice(matrices: dict[str, Matrix]) -> None:
    assert set(matrices) == set(SOURCES)
    assert {name: len(matrix.terms) for name, matrix in matrices.items() if len(matrix.terms) > 1} == {
        "token_embd.weight": 2
    }


@pytest.mark.parametrize(
    "name", ["token_embd.weight", "blk.0.attn_v.weight", "blk.0.ffn_down.weight", "blk.1.attn_q.weight"]
)
def test_the_estimate_is_near_the_divergence_measured(
    model: PreTrainedModel, matrices: dict[str, Matrix], name: str
) -> None:
    matrix = matrices[name]
    rounded = round_rows(matrix.weight, GgmlType.Q5_0)
    reference = [logits.clone() for logits in log_probabilities(model, sequences(1))]
    kept = matrix.parameter.data
    matrix.parameter.data = torch.from_numpy(rounded)
    measured = mean_divergence(model, sequences(1), reference)
    matrix.parameter.data = kept
    assert matrix.divergence(rounded - matrix.weight) == pytest.approx(measured, rel=0.5)


def test_options_name_types_bytes_and_calibrated_costs(model: PreTrainedModel, matrices: dict[str, Matrix]) -> None:
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    shapes = {name: matrix.weight.shape for name, matrix in matrices.items()}
    options = mix_options(model, matrices, shapes, sequences(2), log=silent_log())
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    for name, choices in options.items():
        # Rows of 64 or 128 fit no K-quant.
        assert [option.kind for option in choices] == ["Q4_0", "Q5_0", "Q5_1", "Q8_0"]
        assert [option.n_bytes for option in choices] == [
            tensor_bytes(GgmlType[option.kind], shapes[name]) for option in choices
        ]
        costs = {option.kind: option.divergence for option in choices}
        assert costs["Q4_0"] > costs["Q5_0"] > costs["Q8_0"] > 0
    reference = [logits.clone() for logits in log_probabilities(model, sequences(2))]
    downs = [name for name in matrices if role_of(name) == "ffn_down"]
    kept = {name: matrices[name].parameter.data for name in downs}
    for name in downs:
        rounded = round_rows(matrices[name].weight, GgmlType.Q4_0, matrices[name].importance)
        matrices[name].parameter.data = torch.from_numpy(rounded)
    measured = mean_divergence(model, sequences(2), reference)
    for name in downs:
        matrices[name].parameter.data = kept[name]
    assert sum(options[name][0].divergence for name in downs) == pytest.approx(measured, rel=0.01)


def test_rows_that_fit_no_type_are_refused(model: PreTrainedModel, matrices: dict[str, Matrix]) -> None:
    with pytest.raises(UsageError, match=r"rows of 172 in token_embd.weight divide into no type's blocks; export F16"):
        mix_options(model, matrices, dict.fromkeys(matrices, (8, 172)), sequences(2), log=silent_log())


def test_a_model_that_overflows_is_refused(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path, initializer_range=0.1)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.model.norm.weight.data[:] = 1e38
    with pytest.raises((ModelError, RuntimeError), match=r"not finite|inf"):
        collect_moments(model, sequences(0, n=1), SOURCES, log=silent_log())


@pytest.mark.parametrize("limits", [{}, {"target_bytes": 100_000}, {"max_kl": 1e-3}])
def test_a_mix_keeps_its_limits(model: PreTrainedModel, limits: dict[str, Any]) -> None:
    shapes = {name: model.get_parameter(sources[0]).shape for name, sources in SOURCES.items()}
    tensors = {name: GgufTensor(tuple(SOURCES[name]), tuple(shape), GgmlType.Q5_0) for name, shape in shapes.items()}
    tensors["output_norm.weight"] = GgufTensor(("model.norm.weight",), (WIDTH,), GgmlType.F32)
    mix = auto_mix(model, sequences(0, n=8), tensors, log=silent_log(), **limits)
    assert set(mix.plan.types) == set(SOURCES)
    if "max_kl" in limits:
        assert mix.plan.divergence <= limits["max_kl"]
    else:
        room = limits.get("target_bytes", sum(tensor_bytes(t.kind, t.shape) for t in tensors.values()))
        assert mix.plan.n_bytes + 4 * WIDTH <= room
    name = "blk.0.ffn_up.weight"
    rows = model.get_parameter(SOURCES[name][0]).detach().numpy()
    packed = mix.rounder(name, rows, mix.plan.types[name], None)
    assert packed.nbytes == mix.plan.tensors[name].n_bytes


def test_a_mix_needs_two_sequences(model: PreTrainedModel) -> None:
    with pytest.raises(UsageError, match="at least two calibration sequences"):
        auto_mix(model, sequences(0, n=1), {}, log=silent_log())
