"""llama.cpp's products against float64 arithmetic on gguf's own dequantizer, where sums of 16 bits would overflow.

Inputs are whole numbers up to 127 with a 127 in every block, so that rounding them to int8 loses nothing; weights are
blocks of the most extreme bytes with a scale of 1. A kernel that cuts a sum is off by a hundredth and more.
"""

from collections.abc import Iterator

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from tests.numbers.ggml import multiply

N, K = 16, 512
SCALES: dict[str, tuple[int, ...]] = {
    "Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q2_K": (-4, -2), "Q3_K": (-2,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (-2,), "IQ4_NL": (0,), "IQ4_XS": (0,), "TQ2_0": (-2,), "IQ3_S": (0,),
    "IQ3_XXS": (0,), "IQ2_S": (0,), "IQ2_XS": (0,), "IQ2_XXS": (0,), "IQ1_S": (0,),
}  # fmt: skip
"""Where a block's float16 numbers lie (ggml-common.h)."""


def blocks(kind: GGMLQuantizationType, places: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Weights (N, blocks, bytes): all bits clear, all set, -128 and 127 as int8, and mixtures."""
    random = np.random.default_rng(int(kind))
    size, n_bytes = GGML_QUANT_SIZES[kind]
    shape = (N, K // size, n_bytes)
    extremes = np.array([0, 255, 128, 127], np.uint8)
    each = [np.full(shape, byte, np.uint8) for byte in extremes]
    for made in [*each, random.choice(extremes, shape), random.integers(0, 256, shape).astype(np.uint8)]:
        for place in places:
            at = place % n_bytes
            made[..., at : at + 2] = np.frombuffer(np.float16(1).tobytes(), np.uint8)
        yield made


def inputs(n_rows: int) -> Iterator[np.ndarray]:
    random = np.random.default_rng(n_rows)
    signs = random.choice([-127.0, 127.0], (n_rows, K))
    numbers = random.integers(-127, 128, (n_rows, K)).astype(float)
    numbers[:, ::32] = 127
    for made in (np.full((n_rows, K), 127.0), np.full((n_rows, K), -127.0), signs, numbers):
        yield np.ascontiguousarray(made, np.float32)


@pytest.mark.parametrize("repacked", [False, True])
@pytest.mark.parametrize("name", SCALES)
def test_the_worst_products_are_exact(name: str, repacked: bool) -> None:
    kind = GGMLQuantizationType[name]
    for weights in blocks(kind, SCALES[name]):
        matrix = dequantize(weights.reshape(N, -1), kind).astype(np.float64)
        for n_rows in (1, 4, 5):
            for x in inputs(n_rows):
                found = multiply(kind, weights, x, repacked=repacked)
                if found is None:
                    pytest.skip("llama.cpp does not lay out this type anew here")
                size = np.abs(x) @ np.abs(matrix).T
                assert (np.abs(found - x.astype(np.float64) @ matrix.T) <= 1e-6 * size + 1e-6).all()


@pytest.mark.parametrize(("name", "dtype", "eps"), [("F32", np.float32, 2**-20), ("F16", np.float16, 2**-9)])
def test_float_products_are_near_and_keep_small_numbers(name: str, dtype: type, eps: float) -> None:
    """Inputs are rounded to the weights' type; float16 below 6e-5 and float32 below 1e-38 are not flushed to zero."""
    kind = GGMLQuantizationType[name]
    random = np.random.default_rng(3)
    for least in (1.0, float(np.finfo(dtype).smallest_normal) / 4):
        weights = (random.normal(size=(N, K)) * least).astype(dtype)
        raw = weights.view(np.uint8).reshape(N, K, -1)
        x = random.normal(size=(4, K)).astype(np.float32)
        found = multiply(kind, np.ascontiguousarray(raw), x, repacked=False)
        exact = x.astype(np.float64) @ weights.astype(np.float64).T
        assert found is not None
        size = np.abs(x) @ np.abs(weights.astype(np.float64)).T
        assert (np.abs(found - exact) <= eps * size + K * np.finfo(np.float32).smallest_subnormal).all()
        assert np.abs(found).max() > 0
