"""Grids against the runtimes that read them: ggml's C code and onnxruntime's quantizer and operator."""

import ctypes
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import onnx
import pytest

from edgeft.quant.ggml import GgmlType, quantize
from edgeft.quant.grids.codes import LAYOUTS, put_codes, take_apart
from edgeft.quant.grids.fake import round_rows
from edgeft.quant.grids.onnx import MatMulNBits
from edgeft.quant.grids.onnx import dequantize as onnx_dequantize
from edgeft.quant.grids.onnx import quantize as onnx_quantize
from edgeft.runtime.ort import imported, onnxruntime

GRIDS = [MatMulNBits(bits, size, symmetric) for bits in (4, 8) for size in (32, 64, 128) for symmetric in (True, False)]
COLS = 256
N_RANDOM = 1000


def hard_rows(cols: int = COLS) -> np.ndarray:
    """(1025, cols) float32: 1,000 rows of random sizes and shapes, and 25 that break careless code."""
    source = np.random.default_rng(0)
    sizes = np.exp(source.normal(-3, 2, (N_RANDOM, 1)))
    random = source.standard_t(3, (N_RANDOM, cols)) * sizes
    random[::7] = np.abs(random[::7])  # one sign only
    random[::11, ::3] = 0
    signs = np.where(np.arange(cols) % 2, 1.0, -1.0)
    spike = np.zeros(cols)
    spike[5] = 3e4
    ramp = np.arange(cols)
    adversarial = [
        np.zeros(cols), -np.zeros(cols), np.full(cols, 0.37), np.full(cols, -0.37), spike, -spike, spike + signs * 1e-3,
        np.full(cols, 1e-40), signs * 1e-40, (1 + signs) * 1e-40, spike * 1e-40 + 1e-42, signs * 1e-30,
        np.full(cols, 1e-8), np.full(cols, 6e4), signs * 6e4, signs, signs * 0.5, ramp / cols, -ramp / cols,
        ramp % 16 - 8.0, ramp % 16 - 7.5, np.geomspace(1e-8, 1, cols), signs * np.geomspace(1e-20, 1e4, cols),
        np.eye(1, cols)[0], -np.eye(1, cols, cols - 1)[0],
    ]  # fmt: skip
    return np.concatenate([random, np.stack(adversarial)]).astype(np.float32)


def importance(cols: int) -> np.ndarray:
    return np.random.default_rng(1).gamma(0.5, size=cols).astype(np.float32)


def read_by_llama_cpp(rows: np.ndarray, kind: GgmlType, weights: np.ndarray | None) -> np.ndarray:
    """Quantized and dequantized through ggml's functions of the type itself, not those edgeft calls."""
    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib/libggml-base.so"))
    name = kind.name.replace("Q", "q").replace("I", "i").replace("_NL", "_nl").replace("_XS", "_xs")
    n, cols = rows.shape
    block, size = gguf.GGML_QUANT_SIZES[kind]
    packed, values = np.empty(n * cols // block * size, np.uint8), np.empty_like(rows)
    pointer = ctypes.c_void_p
    getattr(library, f"quantize_{name}")(
        pointer(rows.ctypes.data), pointer(packed.ctypes.data), ctypes.c_int64(n), ctypes.c_int64(cols),
        pointer(None if weights is None else weights.ctypes.data),
    )  # fmt: skip
    getattr(library, f"dequantize_row_{name}")(
        pointer(packed.ctypes.data), pointer(values.ctypes.data), ctypes.c_int64(values.size)
    )
    return values


def bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(np.uint32)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", LAYOUTS, ids=lambda kind: kind.name)
def test_rounded_weights_are_llama_cpps_bit_for_bit(kind: GgmlType, weighted: bool) -> None:
    rows = hard_rows()
    weights = importance(COLS) if weighted else None
    np.testing.assert_array_equal(bits(round_rows(rows, kind, weights)), bits(read_by_llama_cpp(rows, kind, weights)))


@pytest.mark.parametrize("kind", LAYOUTS, ids=lambda kind: kind.name)
def test_codes_taken_apart_and_put_back_are_the_same_bytes(kind: GgmlType) -> None:
    data = quantize(hard_rows(), kind, importance(COLS))
    parts = take_apart(data, kind, COLS)
    np.testing.assert_array_equal(put_codes(data, kind, parts.codes), data)


@pytest.mark.parametrize("kind", LAYOUTS, ids=lambda kind: kind.name)
def test_any_codes_are_read_by_llama_cpp_as_meant(kind: GgmlType) -> None:
    source = np.random.default_rng(2)
    rows = source.normal(size=(64, COLS)).astype(np.float32)
    data = quantize(rows, kind, None)
    wanted = source.integers(0, len(take_apart(data, kind, COLS).levels), rows.shape).astype(np.uint8)
    changed = put_codes(data, kind, wanted)
    parts = take_apart(changed, kind, COLS)
    np.testing.assert_array_equal(parts.codes, wanted)
    read = gguf.quants.dequantize(changed, kind)  # llama.cpp's own Python reader
    np.testing.assert_allclose(parts.values(), read, rtol=0, atol=1e-6 * np.abs(read).max())


@pytest.mark.parametrize("grid", [*LAYOUTS, *GRIDS], ids=lambda grid: grid.name)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_weights_that_are_not_finite_are_refused(grid: GgmlType | MatMulNBits, bad: float) -> None:
    rows = np.zeros((2, 256), np.float32)
    rows[1, 3] = bad
    with pytest.raises(ValueError, match="not finite"):
        round_rows(rows, grid)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
@pytest.mark.parametrize("cols", [256, 480, 168])
def test_onnx_bytes_are_those_of_onnxruntimes_quantizer(grid: MatMulNBits, cols: int) -> None:
    rows = hard_rows(cols)
    packed = onnx_quantize(rows, grid)
    codes, scales, zero_points = quantized_by_onnxruntime(rows, grid)
    np.testing.assert_array_equal(packed.scales, scales)  # a block of zeros may have the scale -0.0
    np.testing.assert_array_equal(packed.codes, codes)
    if packed.zero_points is not None:
        np.testing.assert_array_equal(packed.zero_points, zero_points)


def quantized_by_onnxruntime(rows: np.ndarray, grid: MatMulNBits) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As onnxruntime's `DefaultWeightOnlyQuantizer.qbits_block_quant` does."""
    n, cols = rows.shape
    n_blocks = -(-cols // grid.block_size)
    padded = np.zeros((n_blocks * grid.block_size, n), np.float32)
    padded[:cols] = rows.T
    per_byte = 8 // grid.bits
    codes = np.zeros((n, n_blocks, grid.block_size // per_byte), np.uint8)
    scales = np.zeros((n, n_blocks), np.float32)
    zero_points = np.zeros((n, -(-n_blocks // per_byte)), np.uint8)
    ort = imported("onnxruntime.capi._pybind_state")
    function = ort.quantize_matmul_4bits if grid.bits == 4 else ort.quantize_matmul_8bits
    function(codes, padded, scales, zero_points, grid.block_size, n, len(padded), grid.symmetric)
    return codes, scales, zero_points


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_onnx_values_are_what_the_operator_multiplies_with(grid: MatMulNBits) -> None:
    """The identity times the weights: sums of one product and zeros, so that nothing is rounded."""
    cols = 192
    rows = hard_rows(cols)[:64]
    packed = onnx_quantize(rows, grid)
    expected = onnx_dequantize(packed, grid, cols)
    inputs = {"codes": packed.codes, "scales": packed.scales}
    if packed.zero_points is not None:
        inputs["zero_points"] = packed.zero_points
    session = onnxruntime.InferenceSession(operator(grid, cols, len(rows), inputs))
    (product,) = session.run(None, {"x": np.eye(cols, dtype=np.float32)})
    np.testing.assert_array_equal(product.T, expected)
    np.testing.assert_array_equal(round_rows(rows, grid), expected)


def operator(grid: MatMulNBits, cols: int, n: int, inputs: dict[str, np.ndarray]) -> bytes:
    """A model of one MatMulNBits that computes in float32."""
    node = onnx.helper.make_node(
        "MatMulNBits", ["x", *inputs], ["y"], domain="com.microsoft",
        K=cols, N=n, bits=grid.bits, block_size=grid.block_size, accuracy_level=1,
    )  # fmt: skip
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["t", cols])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["t", n])],
        [onnx.numpy_helper.from_array(value, name) for name, value in inputs.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model: bytes = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return model


def test_an_unknown_onnx_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="3 bits"):
        MatMulNBits(bits=3)
