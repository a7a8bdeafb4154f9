"""Which type is chosen for which processor or GPU, and why."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from edgeft.machine.compute_type import by_capability, by_measurement
from edgeft.machine.gpu import compute_capability, torch_knows_cuda
from edgeft.machine.instruction_sets import instruction_sets
from tests.machine import cpuinfo as captured
from tests.machine.cpuinfo import cpuinfo

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
BOTH = {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"}


@pytest.mark.parametrize(
    ("flags", "environment", "dtype", "reason"),
    [
        (captured.ZEN_3, {}, "float32", "this processor has no bfloat16 products (avx2)"),
        (captured.IVY_BRIDGE, {}, "float32", "this processor has no bfloat16 products (avx)"),
        (captured.ALDER_LAKE, {}, "float32", "this processor has no bfloat16 products (avx2)"),
        (captured.PI_4, {}, "float32", "this processor has no bfloat16 products (neon)"),
        (captured.PI_5, {}, "float32", "this processor has no bfloat16 products (neon)"),
        (captured.ZEN_4, {}, "bfloat16", "this processor multiplies it (avx512_bf16)"),
        (captured.SAPPHIRE_RAPIDS, {}, "bfloat16", "this processor multiplies it (avx512_bf16, amx_bf16)"),
        (captured.SAPPHIRE_RAPIDS_GUEST, {}, "bfloat16", "this processor multiplies it (avx512_bf16)"),
        (captured.GRAVITON_3, {}, "bfloat16", "this processor multiplies it (bf16)"),
        (captured.SKYLAKE_X, {}, "", "this processor has avx512f, but no bfloat16 products"),
        (captured.CASCADE_LAKE, {}, "", "this processor has avx512f, but no bfloat16 products"),
        (captured.ARROW_LAKE, {}, "", "this processor has avx_ne_convert, but no bfloat16 products"),
        ("", {}, "", "this system does not tell what its processor can do"),
        (
            captured.ZEN_4, AVX2, "float32",
            "ONEDNN_MAX_CPU_ISA=AVX2 hides what this processor has for bfloat16 (avx512_bf16, avx512f)",
        ),
        (
            captured.SAPPHIRE_RAPIDS, BOTH, "float32",
            "ATEN_CPU_CAPABILITY=default and ONEDNN_MAX_CPU_ISA=SSE41 hides what this processor has for bfloat16 "
            "(avx512_bf16, amx_bf16, avx512f)",
        ),
        (
            captured.SKYLAKE_X, AVX2, "float32",
            "ONEDNN_MAX_CPU_ISA=AVX2 hides what this processor has for bfloat16 (avx512f)",
        ),
        (
            captured.SAPPHIRE_RAPIDS, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, "",
            "this processor has avx512f, but no bfloat16 products",
        ),
        (captured.ZEN_3, AVX2, "float32", "this processor has no bfloat16 products (avx2)"),
        (captured.GRAVITON_3, BOTH, "bfloat16", "this processor multiplies it (bf16)"),
    ],
)  # fmt: skip
def test_a_processor_tells_by_its_flags(
    tmp_path: Path, flags: str, environment: dict[str, str], dtype: str, reason: str
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo(flags, flags))
    found = by_capability(instruction_sets(path), environment, platform="linux")
    assert (found.dtype, found.reason) == (dtype, reason)


@pytest.mark.parametrize(
    ("gpu", "dtype", "reason"),
    [
        ((9, 0), "bfloat16", "the GPU has compute capability 9.0 and multiplies it"),
        ((8, 0), "bfloat16", "the GPU has compute capability 8.0 and multiplies it"),
        ((12, 1), "bfloat16", "the GPU has compute capability 12.1 and multiplies it"),
        ((7, 5), "float32", "the GPU has compute capability 7.5, and bfloat16 products begin with 8.0"),
    ],
)
def test_a_gpu_counts_before_the_processor(gpu: tuple[int, int], dtype: str, reason: str) -> None:
    found = by_capability(("avx2", "avx512f", "avx512_bf16"), {}, gpu)
    assert (found.dtype, found.reason) == (dtype, reason)


def test_macos_is_measured_whatever_its_processor_has() -> None:
    assert by_capability(("neon", "bf16"), {}, platform="darwin").dtype == ""
    assert by_capability(("neon",), {}, platform="darwin").dtype == "float32"


@pytest.mark.parametrize(
    ("bfloat16", "float32", "dtype"),
    [(470e9, 107e9, "bfloat16"), (7.7e9, 70e9, "float32"), (70e9, 70e9, "float32"), (78e9, 70e9, "bfloat16")],
)
def test_a_measurement_decides_for_the_clearly_faster(bfloat16: float, float32: float, dtype: str) -> None:
    assert by_measurement(bfloat16, float32).dtype == dtype


@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="asks torch on x86")
@pytest.mark.parametrize("switches", [{}, AVX2, {"ONEDNN_MAX_CPU_ISA": "SSE41"}])
def test_where_bfloat16_is_chosen_torch_has_it(switches: dict[str, str]) -> None:
    """torch takes bfloat16 from AVX-512 on, so the oracle is one-sided: what it cannot do is never chosen."""
    pytest.importorskip("torch")
    code = "import torch; print(torch.ops.mkldnn._is_mkldnn_bf16_supported())"
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | switches
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    supported = done.stdout.strip() == "True"
    assert supported is (by_capability(instruction_sets(), switches, platform="linux").dtype != "float32")


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("cuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n", True),
        ("cuda = \"11.8\"\n", True),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.4'\n", False),
        ("", False),
    ],
)  # fmt: skip
def test_torch_for_cuda_is_told_by_its_version_file(tmp_path: Path, text: str, known: bool) -> None:
    (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\ndebug = False\n{text}git_version = 'cafe'\n")
    assert torch_knows_cuda(tmp_path) is known
    assert torch_knows_cuda(tmp_path / "none") is False


def test_torch_says_the_same_of_itself() -> None:
    torch = pytest.importorskip("torch")
    assert torch_knows_cuda() is (torch.version.cuda is not None)
    if torch_knows_cuda():
        expected = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
        assert compute_capability() == expected
