"""int8 weights whose products fit into 16 bits: against brute force, and in onnxruntime with the worst inputs."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeft.export.onnx.int8_columns import quantize_columns, quantize_pairs
from edgeft.runtime.ort import onnxruntime

LIMIT = 32767
"""Of a signed integer of 16 bits."""
SHAPES = ((2, 1), (3, 5), (7, 16), (33, 7), (64, 77), (384, 64))


def worst_sum(codes: np.ndarray) -> int:
    """The sum of products with uint8 inputs that is farthest from 0, of rows 2i and 2i + 1: every input is 0 or 255."""
    pairs = np.vstack([codes, np.zeros((len(codes) % 2, codes.shape[1]), np.int8)]).reshape(-1, 2, codes.shape[1])
    choices = itertools.product((0, 255), repeat=2)
    return max(int(np.abs(np.einsum("i,pin->pn", each, pairs.astype(np.int64))).max()) for each in choices)


def weights(kind: str, shape: tuple[int, int]) -> np.ndarray:
    """float32; every column of `flat` has equal values, of `signs` only their signs differ."""
    random = np.random.default_rng(sum(shape))
    made = {
        "normal": lambda: random.normal(size=shape),
        "tails": lambda: random.standard_t(2, size=shape),
        "flat": lambda: np.tile(random.normal(size=shape[1]), (shape[0], 1)),
        "signs": lambda: np.sign(random.normal(size=shape)),
        "zeros": lambda: np.zeros(shape),
    }
    return made[kind]().astype(np.float32)


@pytest.mark.parametrize("kind", ["normal", "tails", "flat", "signs", "zeros"])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_pair_of_products_needs_more_than_16_bits(kind: str, shape: tuple[int, int]) -> None:
    weight = weights(kind, shape)
    codes, scales = quantize_pairs(weight)
    assert codes.dtype == np.int8
    assert scales.dtype == np.float32
    assert np.abs(codes.astype(int)).max() <= 127
    assert worst_sum(codes) <= LIMIT
    sevenths = np.where(weight.any(axis=0), np.abs(weight).max(axis=0) / 64, 1)  # onnxruntime's reduce_range
    rounded = np.rint(weight / sevenths) * sevenths
    lost, theirs = (np.square(each - weight.astype(np.float64)).sum(axis=0) for each in (codes * scales, rounded))
    assert (lost <= theirs * 1.001 + 1e-12).all()


@pytest.mark.parametrize(
    "pair", [(127.0, 1.6), (-127.0, -40.0), (100.0, -127.0), (64.0, 64.0), (127.0, 127.0), (90.0, 45.0)]
)
def test_a_pair_gives_way_to_the_nearest_that_fits(pair: tuple[float, float]) -> None:
    """By brute force over all pairs, at the scale that was chosen."""
    codes, scales = quantize_pairs(np.array(pair, np.float32)[:, None])
    steps = np.array(pair) / scales[0]
    every = [(a, b) for a in range(-127, 128) for b in range(-127, 128) if a * b <= 0 or abs(a + b) <= 128]
    least = min(float(np.square(np.array(each) - steps).sum()) for each in every)
    assert float(np.square(codes[:, 0] - steps).sum()) == pytest.approx(least, abs=1e-6)


def test_eight_bits_throughout_do_not_fit() -> None:
    """What the limit is for: the same weights, each to its nearest code."""
    assert worst_sum(quantize_columns(weights("signs", (8, 4)))[0]) == 2 * 255 * 127


def dynamic(codes: np.ndarray) -> list[onnx.NodeProto]:
    return [helper.make_node("DynamicQuantizeMatMul", ["x", "codes", "ones"], ["y"], domain="com.microsoft")]


def static(codes: np.ndarray) -> list[onnx.NodeProto]:
    nodes = [("QuantizeLinear", "x", "q"), ("DequantizeLinear", "q", "d")]
    made = [helper.make_node(op, [taken, "one", "zero"], [given]) for op, taken, given in nodes]
    made.append(helper.make_node("DequantizeLinear", ["codes", "ones", "zeros"], ["w"], axis=1))
    return [*made, helper.make_node("MatMul", ["d", "w"], ["y"])]


def product(make: Callable[[np.ndarray], list[onnx.NodeProto]], codes: np.ndarray, x: np.ndarray) -> np.ndarray:
    """x times codes in onnxruntime; codes of inputs are the inputs themselves."""
    tensors: dict[str, Any] = {
        "codes": codes, "ones": np.ones(codes.shape[1], np.float32), "zeros": np.zeros(codes.shape[1], np.int8),
        "one": np.array(1, np.float32), "zero": np.array(0, np.uint8),
    }  # fmt: skip
    graph = helper.make_graph(
        make(codes), "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString(), options,
        providers=["CPUExecutionProvider"],
    )  # fmt: skip
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("make", [dynamic, static])
@pytest.mark.parametrize("n_rows", [1, 5, 33])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_worst_inputs_give_exact_products(
    make: Callable[[np.ndarray], list[onnx.NodeProto]], n_rows: int, shape: tuple[int, int]
) -> None:
    """All inputs 255, and weights of one sign in every pair that reach the limit: on every processor, by definition."""
    random = np.random.default_rng(n_rows)
    first = random.integers(1, 128, ((shape[0] + 1) // 2, shape[1]))
    signs = random.choice([-1, 1], first.shape)
    pairs = np.stack([first * signs, (128 - first) * signs], axis=1).reshape(-1, shape[1])[: shape[0]]
    for codes in (pairs.astype(np.int8), *(quantize_pairs(weights(kind, shape))[0] for kind in ("signs", "tails"))):
        x = np.full((n_rows, shape[0]), 255, np.float32)
        x[:, random.random(shape[0]) < 0.2] = 0
        x[0] = 255
        np.testing.assert_array_equal(product(make, codes, x), x.astype(np.int64) @ codes.astype(np.int64))
