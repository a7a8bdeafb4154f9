"""Rounding on MatMulNBits' grids, held to float64 formulas and to onnxruntime's own k_quant."""

from typing import Any

import numpy as np
import pytest

from edgeft.console import silent_log
from edgeft.quant.grids.onnx import Group, MatMulNBits, dequantize, matrix_bytes, quantize
from edgeft.quant.onnx_rounding import UNCALIBRATED, FeedbackRounder, round_by_search, round_half_quadratic

GRIDS = [MatMulNBits(4, 32), MatMulNBits(4, 32, False), MatMulNBits(4, 64), MatMulNBits(8, 128, False)]


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Heavy tails, as weights have; one block of zeros, one of a single sign."""
    values = np.random.default_rng(0).standard_t(4, (24, 256)).astype(np.float32) * np.float32(0.05)
    values[0, :64], values[1] = 0, np.abs(values[1]) + np.float32(0.02)
    return values


def errors(rows: np.ndarray, packed: Any, grid: MatMulNBits) -> np.ndarray:
    """float64 (R, B, W)."""
    return (dequantize(packed, grid, rows.shape[1]).astype(np.float64) - rows).reshape(len(rows), -1, grid.block_size)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_search_is_never_worse_than_nearest(rows: np.ndarray, grid: MatMulNBits) -> None:
    blocks = rows.reshape(len(rows), -1, grid.block_size).astype(np.float64)
    weights = np.sqrt((blocks**2).mean(-1, keepdims=True)) + np.abs(blocks)
    near, searched = (
        (weights * errors(rows, rounded, grid) ** 2).sum(-1)
        for rounded in (quantize(rows, grid), round_by_search("", rows, grid))
    )
    assert (searched <= near * (1 + 1e-5) + 1e-12).all()
    assert searched.sum() < (0.98 if grid.bits == 4 else 1.0) * near.sum()
    assert not dequantize(round_by_search("", rows, grid), grid, 256)[0, :64].any()


@pytest.mark.parametrize("block_size", [32, 128])
def test_search_is_as_good_as_onnxruntimes(rows: np.ndarray, block_size: int) -> None:
    """Of the squared error weighted as both weigh it."""
    quantizer = pytest.importorskip("onnxruntime.quantization.neural_compressor.weight_only")
    codes, scales, points = quantizer.quant_tensor_k_quant_cpu(rows, num_bits=4, group_size=block_size)
    theirs = ((codes - points) * scales).reshape(rows.shape)
    blocks = rows.reshape(-1, block_size).astype(np.float64)
    weights = (np.sqrt((blocks**2).mean(-1, keepdims=True)) + np.abs(blocks)).reshape(rows.shape)
    grid = MatMulNBits(4, block_size, False)
    ours = dequantize(round_by_search("", rows, grid), grid, rows.shape[1])
    assert (weights * (ours - rows) ** 2).sum() <= (weights * (theirs - rows) ** 2).sum()


@pytest.mark.parametrize("grid", GRIDS[:3], ids=lambda grid: grid.name)
def test_hqq_lowers_its_norm_and_keeps_whole_zero_points(rows: np.ndarray, grid: MatMulNBits) -> None:
    near, hqq = (
        (np.abs(errors(rows, rounded, grid)) ** 0.7).sum(-1)
        for rounded in (quantize(rows, grid), round_half_quadratic("", rows, grid))
    )
    assert (hqq <= near * (1 + 1e-5)).all()
    assert hqq.sum() < 0.995 * near.sum()
    points = round_half_quadratic("", rows, grid).zero_points
    assert points is None if grid.symmetric else points.dtype == np.uint8


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_feedback_lowers_the_error_of_outputs(rows: np.ndarray, grid: MatMulNBits) -> None:
    generator = np.random.default_rng(1)
    inputs = generator.normal(size=(1000, 256)) @ generator.normal(size=(256, 256)) * np.exp(generator.normal(size=256))
    hessian = inputs.T @ inputs
    hessian /= np.diag(hessian).mean()
    rounder = FeedbackRounder({"one": hessian.astype(np.float32)})
    near, fed = (
        np.einsum("ri,ij,rj->", change, hessian, change)
        for change in (
            errors(rows, packed, grid).reshape(rows.shape)
            for packed in (quantize(rows, grid), rounder("one", rows, grid))
        )
    )
    assert fed < (0.5 if grid.bits == 4 else 0.7) * near
    other = rounder("another", rows, grid)
    assert np.array_equal(other.codes, round_by_search("", rows, grid).codes)


@pytest.mark.parametrize("method", ["k_quant", "hqq", "feedback"])
def test_rows_are_independent(rows: np.ndarray, method: str) -> None:
    """So that pieces of a matrix can be rounded apart; a last block that is not full keeps its shape."""
    rows, grid = rows[:, :200], MatMulNBits(4, 32, False)
    rounder = UNCALIBRATED.get(method) or FeedbackRounder({"": np.eye(200, dtype=np.float32)})
    whole = rounder("", rows, grid)
    for row in (0, 1, 23):
        alone = rounder("", rows[row : row + 1], grid)
        assert np.array_equal(alone.codes[0], whole.codes[row])
        assert np.array_equal(alone.zero_points[0], whole.zero_points[row])
    assert whole.codes.shape == quantize(rows, grid).codes.shape
    assert np.abs(dequantize(whole, grid, 200) - rows).max() < 0.2


def test_input_hessians_and_a_mix_of_grids(tmp_path: Any) -> None:
    """X'X by hand; and a mix is within its bytes and better than its smallest grid by the estimate it went by."""
    import torch
    from transformers import AutoModelForCausalLM

    from edgeft.export.folder import read_folder
    from edgeft.export.onnx.export import lay_out_decoder
    from edgeft.export.onnx.groups import groups_of
    from edgeft.export.onnx.matrices import onnx_rules
    from edgeft.quant.onnx_auto import input_hessians, plan_grids
    from tests.tiny_models import make_model

    folder = make_model(tmp_path, "smollm2", hidden_size=128)
    model = AutoModelForCausalLM.from_pretrained(folder)
    layout, _ = lay_out_decoder(read_folder(folder))
    rules = onnx_rules(layout.rules)
    sources = {name: rule.sources for name, rule in rules.items()}
    sequences = [list(range(5, 60)), list(range(100, 180))]
    seen = []
    model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].double()))
    hessian = input_hessians(model, sequences, sources, log=silent_log())["blk.1.ffn_down.weight"]
    inputs = torch.cat(seen[-2:]).detach().numpy()
    wanted = inputs.T @ inputs
    assert np.allclose(hessian, wanted / np.diag(wanted).mean(), atol=1e-5)

    groups = groups_of(rules)
    assert set(groups["blk.0.attn_q.weight"].tensors) == {f"blk.0.attn_{part}.weight" for part in "qkv"}
    assert "blk.0.attn_k.weight" not in groups
    target = sum(_bytes(group, MatMulNBits(4, 32)) for group in groups.values())
    grids, _ = plan_grids(model, sequences, sources, groups, target_bytes=target, log=silent_log())
    assert sum(matrix_bytes(rules[name].shape, grid) for name, grid in grids.items()) <= target
    assert len(set(grids.values())) > 1


def _bytes(group: Group, grid: MatMulNBits) -> int:
    return sum(matrix_bytes(shape, grid) for shape in group.tensors.values())


def test_a_model_with_experts_is_calibrated(tmp_path: Any) -> None:
    """Inputs of all experts together, by hand from what was chosen; gate, up and down share a grid in a mix."""
    import torch
    from transformers import AutoModelForCausalLM

    from edgeft.export.folder import read_folder
    from edgeft.export.onnx.export import lay_out_decoder
    from edgeft.export.onnx.groups import groups_of
    from edgeft.export.onnx.matrices import onnx_rules
    from edgeft.quant.onnx_auto import input_hessians, plan_grids
    from tests.tiny_models import make_model

    folder = make_model(tmp_path, "qwen3_moe")
    model = AutoModelForCausalLM.from_pretrained(folder)
    rules = onnx_rules(lay_out_decoder(read_folder(folder))[0].rules)
    sources = {name: rule.sources for name, rule in rules.items()}
    sequences = [list(range(5, 60)), list(range(100, 180))]
    seen = []
    model.model.layers[1].mlp.experts.register_forward_pre_hook(lambda _, args: seen.append(args[:2]))
    hessian = input_hessians(model, sequences, sources, log=silent_log())["blk.1.ffn_gate_up_exps.weight"]
    inputs = torch.cat([states.repeat_interleave(chosen.shape[1], dim=0) for states, chosen in seen]).double().numpy()
    wanted = inputs.T @ inputs
    assert np.allclose(hessian, wanted / np.diag(wanted).mean(), atol=1e-5)

    groups = groups_of(rules, (1, 31))
    target = sum(_bytes(group, MatMulNBits(4, 32)) for group in groups.values())
    grids, rounder = plan_grids(model, sequences, sources, groups, target_bytes=target, log=silent_log())
    for layer in (0, 1):
        assert grids[f"blk.{layer}.ffn_gate_up_exps.weight"] == grids[f"blk.{layer}.ffn_down_exps.weight"]
        assert f"blk.{layer}.ffn_gate_inp.weight" not in grids
    assert rounder("blk.0.ffn_gate_up_exps.weight", np.ones((2, 64), np.float32), MatMulNBits(4, 32)).scales.all()
