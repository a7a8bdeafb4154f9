"""Error feedback: what it is for (a smaller d' H d than ggml's rounding), what it must be (codes of the same grid)."""

import numpy as np
import pytest

from edgeft.quant import ggml
from edgeft.quant.ggml import GgmlType
from edgeft.quant.grids.codes import LAYOUTS
from edgeft.quant.rounding import FeedbackRounder, feedback_of, round_with_feedback

COLS = 512
NAME = "blk.0.ffn_up.weight"


def correlated_hessian(cols: int = COLS) -> np.ndarray:
    """Inputs as layers see them: few directions carry most, and columns differ in size."""
    source = np.random.default_rng(0)
    inputs = source.normal(size=(4 * cols, 24)) @ source.normal(size=(24, cols)) + source.normal(size=(4 * cols, cols))
    inputs *= np.exp(source.normal(0, 0.5, cols))
    return (inputs.T @ inputs / len(inputs)).astype(np.float32)


def weights(n_rows: int = 32, cols: int = COLS) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 0.05, (n_rows, cols)).astype(np.float32)


def cost(packed: np.ndarray, kind: GgmlType, rows: np.ndarray, hessian: np.ndarray) -> float:
    """sum of d' H d in float64, on what llama.cpp reads."""
    error = ggml.dequantize(packed, kind, rows.shape[1]).astype(np.float64) - rows
    return float(np.einsum("rc,cd,rd->", error, hessian.astype(np.float64), error, optimize=True))


@pytest.mark.parametrize("kind", LAYOUTS, ids=lambda kind: kind.name)
def test_feedback_beats_ggmls_rounding_in_every_type(kind: GgmlType) -> None:
    rows, hessian = weights(), correlated_hessian()
    importance = np.ascontiguousarray(np.diag(hessian))
    nearest = cost(ggml.quantize(rows, kind, importance), kind, rows, hessian)
    ours = FeedbackRounder({NAME: hessian})(NAME, rows, kind, None)
    assert ours.shape == (len(rows), ggml.row_bytes(kind, COLS))
    assert cost(ours, kind, rows, hessian) < 0.7 * nearest


def test_feedback_is_gptq_with_the_inverse_hessian() -> None:
    """Against GPTQ as it is written in the paper: column by column, with the inverse Hessian of what is left."""
    rows, hessian = weights(8, 32), correlated_hessian(32)
    kind = GgmlType.Q8_0
    packed = round_with_feedback(rows, kind, None, feedback_of(hessian, damping=0.0))
    scales = np.ascontiguousarray(ggml.quantize(rows, kind)[:, :2]).view(np.float16).astype(np.float64)
    left = rows.astype(np.float64)
    expected = np.empty_like(left)
    for column in range(32):
        inverse = np.linalg.inv(hessian[column:, column:].astype(np.float64))
        expected[:, column] = scales[:, 0] * np.clip(np.rint(left[:, column] / scales[:, 0]), -128, 127)
        error = (left[:, column] - expected[:, column]) / inverse[0, 0]
        left[:, column:] -= error[:, None] * inverse[0]
    agree = np.isclose(ggml.dequantize(packed, kind, 32), expected, rtol=0, atol=1e-6)
    assert agree.mean() > 0.98  # a value half-way between two codes may fall either way in float32


def test_without_correlations_every_weight_gets_its_nearest_code() -> None:
    """ggml divides by the scale before it is rounded to float16, so its code may be the second nearest."""
    rows = weights()
    ours = FeedbackRounder({NAME: np.eye(COLS, dtype=np.float32)})(NAME, rows, GgmlType.Q8_0, None)
    errors = [
        np.abs(ggml.dequantize(data, GgmlType.Q8_0, COLS) - rows)
        for data in (ours, ggml.quantize(rows, GgmlType.Q8_0, np.ones(COLS, np.float32)))
    ]
    assert (errors[0] <= errors[1] + 1e-7).all()


def test_tensors_and_types_it_does_not_know_are_ggmls() -> None:
    rows, importance = weights(), np.ones(COLS, np.float32)
    rounder = FeedbackRounder({NAME: correlated_hessian()})
    for name, kind in (("blk.1.ffn_up.weight", GgmlType.Q4_K), (NAME, GgmlType.TQ2_0)):
        np.testing.assert_array_equal(rounder(name, rows, kind, importance), ggml.quantize(rows, kind, importance))


@pytest.mark.parametrize("kind", [GgmlType.Q4_0, GgmlType.Q4_K, GgmlType.IQ4_NL], ids=lambda kind: kind.name)
def test_zeros_and_inputs_that_are_always_zero_stay_harmless(kind: GgmlType) -> None:
    rows = weights()
    rows[3] = 0
    rows[:, 40:80] = 0
    hessian = correlated_hessian()
    hessian[100:110] = hessian[:, 100:110] = 0
    packed = FeedbackRounder({NAME: hessian})(NAME, rows, kind, None)
    read = ggml.dequantize(packed, kind, COLS)
    assert np.isfinite(read).all()
    assert np.abs(read[3]).max() == 0


def test_rows_are_independent() -> None:
    rows = weights()
    rounder = FeedbackRounder({NAME: correlated_hessian()})
    whole = ggml.dequantize(rounder(NAME, rows, GgmlType.Q4_K, None), GgmlType.Q4_K, COLS)
    halves = [
        ggml.dequantize(rounder(NAME, part, GgmlType.Q4_K, None), GgmlType.Q4_K, COLS)
        for part in (rows[:16], rows[16:])
    ]
    assert np.isclose(whole, np.concatenate(halves), rtol=0, atol=1e-6).mean() > 0.99
