"""int8 products that 16 bits cannot hold: found in ONNX files of any exporter, by brute force, and run exactly."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.calibrate import CalibrationDataReader

from edgeft.errors import Int8Warning, RuntimeFault
from edgeft.runtime.inspection import inspect_model
from edgeft.runtime.int8_pairs import adds_in_16_bits, exceeds_pairs, find_overflow
from edgeft.runtime.onnx_file import check_onnx
from edgeft.runtime.onnx_session import open_session

K, N = 64, 32
AVX2 = ("sse41", "avx", "avx2", "fma", "f16c")


@pytest.mark.parametrize(
    ("present", "machine", "cuts"),
    [
        (AVX2, "x86_64", True),
        ((*AVX2, "avx512f"), "AMD64", True),
        ((*AVX2, "avx_vnni"), "x86_64", False),
        ((*AVX2, "avx512f", "avx512_vnni"), "x86_64", False),
        ((), "x86_64", True),  # a system that does not tell
        (("neon",), "aarch64", False),
        ((), "arm64", False),
    ],
)
def test_which_processors_cut(present: tuple[str, ...], machine: str, cuts: bool) -> None:
    assert adds_in_16_bits(present, machine) is cuts


@pytest.mark.parametrize("shape", [(2, 3), (7, 5), (2, 4, 6), (3000, 800)])
def test_pairs_are_judged_as_by_brute_force(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(len(shape))
    for reach in (64, 66, 127):
        codes = random.integers(-reach, reach + 1, shape).astype(np.int8)
        rows = codes.reshape(-1, *shape[-2:]).astype(int)
        sums = [abs(each[at] + each[at + 1]).max() for each in rows for at in range(0, shape[-2] - 1, 2)]
        assert exceeds_pairs(codes) is bool(max(sums) > 128)


def dynamic(codes: np.ndarray) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    node = helper.make_node("DynamicQuantizeMatMul", ["x", "w", "ones"], ["y"], domain="com.microsoft")
    return [node], {"w": codes}


def integer(codes: np.ndarray) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
    ]
    return nodes, {"w": codes}


def qdq(codes: np.ndarray, product: str = "MatMul", **attributes: Any) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "one", "middle"], ["f"]),
        helper.make_node(product, ["d", "f"], ["y"], **attributes),
    ]
    return nodes, {"w": codes}


def turned(codes: np.ndarray) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    return qdq(np.ascontiguousarray(codes.T), "Gemm", transB=1)


def linear(codes: np.ndarray) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("QLinearMatMul", ["q", "one", "zero", "w", "one", "middle", "far", "zero"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "far", "zero"], ["y"]),
    ]
    return nodes, {"w": codes}


def weight_only(codes: np.ndarray) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "one", "middle"], ["f"]),
        helper.make_node("MatMul", ["x", "f"], ["y"]),
    ]
    return nodes, {"w": codes}


Make = Callable[[np.ndarray], tuple[list[onnx.NodeProto], dict[str, Any]]]


def save(path: Path, make: Make, codes: np.ndarray, **how: Any) -> Path:
    nodes, tensors = make(codes)
    tensors |= {
        "ones": np.ones(N, np.float32), "one": np.array(1, np.float32), "zero": np.array(0, np.uint8),
        "middle": np.array(0, np.int8), "far": np.array(1e4, np.float32),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes, "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", N])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path, **how)
    return path


def codes_of(reach: int) -> np.ndarray:
    """int8 (K, N): signs alternate by two rows, so that pairs add up."""
    return np.where(np.arange(K)[:, None] % 4 < 2, reach, -reach).repeat(N, 1).astype(np.int8)


MAKES: list[tuple[Make, bool]] = [(dynamic, True), (integer, True), (qdq, True), (turned, True), (linear, False)]


@pytest.mark.parametrize(("make", "avoidable"), MAKES)
def test_files_of_other_exporters_are_seen_through(make: Make, avoidable: bool, tmp_path: Path) -> None:
    outside = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0}
    for at, how in enumerate(({}, outside)):
        large = save(tmp_path / f"large{at}.onnx", make, codes_of(127), **how)
        found = find_overflow(check_onnx(large))
        assert found is not None
        assert (found.weights, found.n_products, found.avoidable) == (("w",), 1, avoidable)
        assert any("16 bits" in odd for odd in inspect_model(large)["odd"])
        small = save(tmp_path / f"small{at}.onnx", make, codes_of(64), **how)
        assert find_overflow(check_onnx(small)) is None
        assert not any("16 bits" in odd for odd in inspect_model(small)["odd"])


def test_weights_alone_in_int8_are_multiplied_as_floats(tmp_path: Path) -> None:
    assert find_overflow(check_onnx(save(tmp_path / "model.onnx", weight_only, codes_of(127)))) is None


class Texts(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self._left = [{"x": np.random.default_rng(0).normal(size=(4, K)).astype(np.float32)}]

    def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
        return self._left.pop() if self._left else None


def test_onnxruntimes_own_quantizer_is_seen_through(tmp_path: Path) -> None:
    """Whose `reduce_range` is what we call safe, and whose default is not."""
    weight = np.random.default_rng(1).choice([-1.0, 1.0], (K, N)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    save(tmp_path / "floats.onnx", lambda codes: (nodes, {"w": codes}), weight)
    for reduced in (False, True):
        how: dict[str, Any] = {"weight_type": QuantType.QInt8, "reduce_range": reduced}
        quantize_dynamic(tmp_path / "floats.onnx", tmp_path / "dynamic.onnx", **how)
        static = {"quant_format": QuantFormat.QDQ, **how}
        quantize_static(tmp_path / "floats.onnx", tmp_path / "static.onnx", Texts(), **static)
        for name in ("dynamic", "static"):
            assert (find_overflow(check_onnx(tmp_path / f"{name}.onnx")) is None) is reduced


@pytest.mark.parametrize("make", [make for make, avoidable in MAKES if avoidable])
@pytest.mark.parametrize("reach", [64, 127])
def test_products_are_exact_whatever_the_weights(make: Make, reach: int, tmp_path: Path) -> None:
    """With a warning on a processor that would cut them."""
    codes = codes_of(reach)
    path = save(tmp_path / "model.onnx", make, codes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        session, checked = open_session(path, n_threads=1, providers=())
    warned = adds_in_16_bits() and reach > 64
    assert [each.category for each in caught] == [Int8Warning] * warned
    assert bool(checked.notes) is warned
    for n_rows in (1, 5):
        x = np.full((n_rows, K), 255, np.float32)
        x[:, np.arange(K) % 4 >= 2] = 0
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], x @ codes.astype(np.float64))


@pytest.mark.skipif(not adds_in_16_bits(), reason="this processor adds int8 products in 32 bits")
def test_what_cannot_be_exact_here_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "model.onnx", linear, codes_of(127))
    with pytest.raises(RuntimeFault, match="no other way for QLinearMatMul: the numbers would be wrong; export"):
        open_session(path, n_threads=1, providers=())
