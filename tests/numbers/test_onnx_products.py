"""onnxruntime's products of a decoder against their definitions in float64, where sums of 16 bits would overflow.

Inputs are 127 or -127 and weights the most extreme codes with a scale of 1, so that rounding inputs to int8, as
`accuracy_level` 4 does, loses nothing. A kernel that cuts a sum is off by a hundredth and more.
"""

import itertools
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, helper, numpy_helper

from edgeft.runtime.ort import onnxruntime

K, N = 288, 33


def run(node: NodeProto, feed: dict[str, np.ndarray], tensors: dict[str, np.ndarray]) -> np.ndarray:
    """The output `y` of a graph of one node."""
    kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feed.items()}
    graph = helper.make_graph(
        [node], "product",
        [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()],
        [helper.make_tensor_value_info("y", kinds["x"], None)],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed)[0])


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes (…, n) of `bits` as bytes, the first in the lowest bits."""
    per_byte = 8 // bits
    parts = [codes[..., at::per_byte].astype(np.uint16) << (bits * at) for at in range(per_byte)]
    return np.asarray(sum(parts[1:], parts[0])).astype(np.uint8)


def extremes(shape: tuple[int, ...], top: int, choice: str) -> np.ndarray:
    made = {
        "largest": lambda: np.full(shape, top),
        "smallest": lambda: np.zeros(shape),
        "mixed": lambda: np.random.default_rng(top).choice([0, top], shape),
    }
    return made[choice]().astype(np.uint8)


def signs(n_rows: int, n_cols: int) -> list[np.ndarray]:
    mixed = np.random.default_rng(n_rows).choice([-127, 127], (n_rows, n_cols))
    return [
        each.astype(np.float32) for each in (np.full((n_rows, n_cols), 127), np.full((n_rows, n_cols), -127), mixed)
    ]


@pytest.mark.parametrize("level", [1, 4])
@pytest.mark.parametrize("block_size", [16, 32, 128])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_products_by_blocks_are_exact(bits: int, block_size: int, level: int) -> None:
    top, n_blocks = 2**bits - 1, -(-K // block_size)
    for choice, zero_point in itertools.product(("largest", "smallest", "mixed"), (None, 0, top)):
        codes = np.zeros((N, n_blocks * block_size), np.uint8)
        codes[:, :K] = extremes((N, K), top, choice)
        tensors = {
            "w": packed(codes.reshape(N, n_blocks, block_size), bits),
            "scales": np.ones((N, n_blocks), np.float32),
        }
        names = ["x", "w", "scales"]
        if zero_point is not None:
            wide = np.zeros((N, -(-n_blocks * bits // 8) * 8 // bits), np.uint8)
            wide[:, :n_blocks] = zero_point
            tensors["zeros"] = packed(wide, bits)
            names.append("zeros")
        sizes = {"K": K, "N": N, "bits": bits, "block_size": block_size, "accuracy_level": level}
        node = helper.make_node("MatMulNBits", names, ["y"], domain="com.microsoft", **sizes)
        steps = codes[:, :K].astype(np.float64) - (2 ** (bits - 1) if zero_point is None else zero_point)
        for x in itertools.chain.from_iterable(signs(n_rows, K) for n_rows in (1, 33)):
            size = np.abs(x) @ np.abs(steps).T + 1
            assert (np.abs(run(node, {"x": x}, tensors) - x @ steps.T) <= 1e-5 * size).all(), (choice, zero_point)


@pytest.mark.parametrize("bits", [4, 8])
def test_experts_are_exact(bits: int) -> None:
    """The first matrix of one expert of two, brought out by a second one that is the identity."""
    width, block_size, middle = 64, 32, 2 ** (bits - 1)
    identity = np.tile((middle + np.eye(width)).astype(np.uint8), (2, 1, 1))
    for choice in ("largest", "smallest"):
        codes = extremes((2, width, width), 2**bits - 1, choice)
        ones = np.ones((2, width, width // block_size), np.float32)
        tensors = {"w1": packed(codes, bits), "s1": ones, "w2": packed(identity, bits), "s2": ones}
        how: dict[str, Any] = {"k": 1, "activation_type": "identity", "accuracy_level": 4}
        how |= {"expert_weight_bits": bits, "block_size": block_size, "normalize_routing_weights": 1}
        names = ["x", "router", "w1", "s1", "", "w2", "s2"]
        node = helper.make_node("QMoE", names, ["y"], domain="com.microsoft", **how)
        for n_rows, sign in itertools.product((1, 5), (1, -1)):
            x = np.full((n_rows, width), 127 * sign, np.float32)
            feed = {"x": x, "router": np.tile(np.float32([5, -5]), (n_rows, 1))}
            exact = x.astype(np.float64) @ (codes[0].astype(np.float64) - middle).T
            np.testing.assert_allclose(run(node, feed, tensors), exact, rtol=1e-3)


@pytest.mark.parametrize(("dtype", "eps"), [(np.float32, 2**-20), (np.float16, 2**-9)])
def test_float_products_are_near_and_keep_small_numbers(dtype: Any, eps: float) -> None:
    """In float16 as well: computed in float32 on x86, in float16 on ARM with fp16. Nothing is flushed to zero."""
    node, random = helper.make_node("MatMul", ["x", "w"], ["y"]), np.random.default_rng(5)
    for least in (1.0, float(np.finfo(dtype).smallest_normal) / 4):
        x, w = random.normal(size=(4, 64)).astype(dtype), (random.normal(size=(64, N)) * least).astype(dtype)
        found = run(node, {"x": x}, {"w": w}).astype(np.float64)
        exact, size = x.astype(np.float64) @ w.astype(np.float64), np.abs(x).astype(np.float64) @ np.abs(w)
        assert (np.abs(found - exact) <= eps * size + 64 * float(np.finfo(dtype).smallest_subnormal)).all()
        assert np.abs(found).max() > 0
