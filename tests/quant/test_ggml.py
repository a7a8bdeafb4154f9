"""ggml's quantizers through ctypes; gguf-py, written apart from the C code, is the oracle."""

import ctypes.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import gguf
import numpy as np
import pytest

from edgeft.errors import MissingExtra, RuntimeFault
from edgeft.quant import ggml
from edgeft.quant.ggml import GgmlType

ROWS = np.random.default_rng(3).standard_normal((6, 512)).astype(np.float32)
IMPORTANCE = np.random.default_rng(4).random(512).astype(np.float32) + 0.01
SLOW_TO_START = ("IQ1_S", "IQ1_M", "IQ2_XS", "IQ2_S")
"""ggml makes tables for them at first use, 2 to 10 s each."""
PACKED_BY_GGUF_PY = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0")


@pytest.mark.parametrize("name", PACKED_BY_GGUF_PY)
def test_packs_as_gguf_py_does(name: str) -> None:
    kind = GgmlType[name]
    expected = gguf.quantize(ROWS, kind).view(np.uint8).reshape(len(ROWS), -1)
    assert np.array_equal(ggml.quantize(ROWS, kind), expected)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW_TO_START else ())
        for name in ggml.TESTED_TYPES
        if name != "F32"
    ],
)
def test_what_is_packed_reads_as_gguf_py_reads_it(name: str) -> None:
    kind = GgmlType[name]
    packed = ggml.quantize(ROWS, kind, IMPORTANCE)
    assert packed.shape == (6, ggml.row_bytes(kind, 512))
    ours = ggml.dequantize(packed, kind, 512)
    assert np.array_equal(ours, gguf.dequantize(packed, kind).reshape(6, 512))
    assert np.corrcoef(ours.ravel(), ROWS.ravel())[0, 1] > 0.65  # three values a weight: 0.70


def test_float32_is_copied() -> None:
    packed = ggml.quantize(ROWS, GgmlType.F32)
    assert np.array_equal(ggml.dequantize(packed, GgmlType.F32, 512), ROWS)


@pytest.mark.parametrize("name", ["Q4_K", "IQ4_XS", "Q4_0"])
def test_importance_lowers_the_error_it_weighs(name: str) -> None:
    def error(importance: np.ndarray | None) -> float:
        packed = ggml.quantize(ROWS, GgmlType[name], importance)
        return float((IMPORTANCE * (ggml.dequantize(packed, GgmlType[name], 512) - ROWS) ** 2).sum())

    assert error(IMPORTANCE) < error(None)


@pytest.mark.parametrize("name", ["Q4_K", "IQ2_XXS", "BF16"])
def test_rows_are_independent_and_threads_do_not_matter(name: str) -> None:
    kind = GgmlType[name]
    whole = ggml.quantize(ROWS, kind, IMPORTANCE)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda row: ggml.quantize(ROWS[row : row + 1], kind, IMPORTANCE), range(6)))
    assert np.array_equal(np.concatenate(parts), whole)


def test_what_would_end_the_process_is_refused() -> None:
    with pytest.raises(ValueError, match="500 values do not divide into blocks of 256"):
        ggml.quantize(ROWS[:, :500], GgmlType.Q4_K)
    with pytest.raises(ValueError, match="IQ2_XXS needs importance"):
        ggml.quantize(ROWS, GgmlType.IQ2_XXS)
    with pytest.raises(ValueError, match=r"importance of shape \(3,\)"):
        ggml.quantize(ROWS, GgmlType.Q4_K, np.ones(3))
    with pytest.raises(ValueError, match="not finite"):
        ggml.quantize(np.full((1, 512), np.nan), GgmlType.Q4_K)
    with pytest.raises(ValueError, match="rows of 3 bytes for 32 values of Q8_0"):
        ggml.dequantize(np.zeros((1, 3), np.uint8), GgmlType.Q8_0, 32)
    assert not ggml.is_finite(np.full((1, 17), 0xFF, np.uint8), GgmlType.MXFP4)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The library is loaded again in this test, and again after it."""
    ggml._library.cache_clear()
    yield monkeypatch
    ggml._library.cache_clear()


def test_another_library_is_refused(fresh: pytest.MonkeyPatch) -> None:
    fresh.setitem(gguf.GGML_QUANT_SIZES, GgmlType.Q4_K, (256, 100))
    with pytest.raises(RuntimeFault, match=r"ggml 0\.\d+\.\d+ is not .*: its type 12 is q4_K with \(256, 144\)"):
        ggml.self_test()


def test_another_version_is_refused(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(ggml, "KNOWN_MAJOR", 7)
    with pytest.raises(RuntimeFault, match="its major version is not 7"):
        ggml.self_test()


def test_a_block_packed_otherwise_is_noticed(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(ggml, "_q8_0", lambda block: np.zeros(34, np.uint8))
    with pytest.raises(RuntimeFault, match="packs a known Q8_0 block otherwise"):
        ggml.self_test()


def test_without_the_library(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(ggml.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'edgeft\[gguf\]'"):
        ggml.self_test()
    fresh.setattr(ggml, "_library_path", lambda: ctypes.util.find_library("c"))
    with pytest.raises(RuntimeFault, match="not the ggml that edgeft knows"):
        ggml.self_test()
