"""Instruction sets, read from captured /proc/cpuinfo, and what two switches leave of them."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from edgeft.machine.cores import physical_cores, usable_cores
from edgeft.machine.instruction_sets import (
    FLAGS,
    SYSCTL,
    WINDOWS,
    effective_instruction_sets,
    hiding_switches,
    instruction_sets,
    visible_to_torch,
)
from tests.machine import cpuinfo as captured
from tests.machine.cpuinfo import cpuinfo

AVX2 = ("sse41", "avx", "avx2", "fma", "f16c")
AVX512 = (*AVX2, "avx512f")
ZEN_4 = (*AVX512, "avx512_vnni", "avx512_bf16")
SAPPHIRE_RAPIDS = (
    *AVX2, "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
)  # fmt: skip
GRAVITON_3 = ("neon", "dotprod", "fp16", "i8mm", "bf16", "sve")


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        ([captured.IVY_BRIDGE], ("sse41", "avx", "f16c")),
        ([captured.ZEN_3, captured.ZEN_3], AVX2),
        ([captured.ZEN_4], ZEN_4),
        ([captured.SKYLAKE_X], AVX512),
        ([captured.CASCADE_LAKE], (*AVX512, "avx512_vnni")),
        ([captured.SAPPHIRE_RAPIDS], SAPPHIRE_RAPIDS),
        ([captured.SAPPHIRE_RAPIDS_GUEST], SAPPHIRE_RAPIDS[:-2]),
        ([captured.ALDER_LAKE], (*AVX2, "avx_vnni")),
        ([captured.ARROW_LAKE], (*AVX2, "avx_vnni", "avx_ne_convert")),
        ([captured.PI_4], ("neon",)),
        ([captured.PI_5], ("neon", "dotprod", "fp16")),
        ([captured.GRAVITON_3], GRAVITON_3),
        # Where cores differ, a thread may land on the lesser one.
        ([captured.PI_5, captured.PI_4], ("neon",)),
        # A hypervisor may hide a part of AVX-512: then no kernel of it runs.
        ([captured.SKYLAKE_X.replace(" avx512vl", "")], AVX2),
        ([""], ()),
    ],
)
def test_flags_are_read_by_their_names(tmp_path: Path, cores: list[str], expected: tuple[str, ...]) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo(*cores))
    assert instruction_sets(path) == expected


def test_a_system_without_cpuinfo_tells_what_it_can(tmp_path: Path) -> None:
    found = instruction_sets(tmp_path / "none")
    assert found == () if sys.platform == "linux" else set(found) <= set(FLAGS)
    assert set(SYSCTL) | set(WINDOWS) <= set(FLAGS)


def test_damaged_bytes_in_cpuinfo_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_bytes(b"model name\t: \xff\xfe\nflags\t\t: sse4_1 avx\n")
    assert instruction_sets(path) == ("sse41", "avx")


@pytest.mark.parametrize(
    ("present", "environment", "left"),
    [
        (SAPPHIRE_RAPIDS, {}, SAPPHIRE_RAPIDS),
        (SAPPHIRE_RAPIDS, {"ATEN_CPU_CAPABILITY": "avx512"}, SAPPHIRE_RAPIDS),
        (SAPPHIRE_RAPIDS, {"ATEN_CPU_CAPABILITY": "avx2"}, (*AVX2, "avx_vnni")),
        (SAPPHIRE_RAPIDS, {"ATEN_CPU_CAPABILITY": "default"}, ("sse41",)),
        (SAPPHIRE_RAPIDS, {"ATEN_CPU_CAPABILITY": "AVX2"}, SAPPHIRE_RAPIDS),  # torch compares letter by letter
        (SAPPHIRE_RAPIDS, {"ONEDNN_MAX_CPU_ISA": "AVX2"}, AVX2),
        (SAPPHIRE_RAPIDS, {"ONEDNN_MAX_CPU_ISA": "avx2"}, AVX2),  # oneDNN does not
        (SAPPHIRE_RAPIDS, {"DNNL_MAX_CPU_ISA": "AVX2_VNNI"}, (*AVX2, "avx_vnni")),
        (SAPPHIRE_RAPIDS, {"ONEDNN_MAX_CPU_ISA": "SSE41"}, ("sse41",)),
        (SAPPHIRE_RAPIDS, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, AVX512),
        (SAPPHIRE_RAPIDS, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}, (*AVX512, "avx512_vnni")),
        (SAPPHIRE_RAPIDS, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, ZEN_4),
        (SAPPHIRE_RAPIDS, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_FP16"}, SAPPHIRE_RAPIDS[:-2]),
        (SAPPHIRE_RAPIDS, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}, SAPPHIRE_RAPIDS),
        (SAPPHIRE_RAPIDS, {"ONEDNN_MAX_CPU_ISA": "DEFAULT"}, SAPPHIRE_RAPIDS),
        (ZEN_4, {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "SSE41"}, ("sse41",)),
        (AVX2, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, AVX2),  # a switch adds nothing
        (GRAVITON_3, {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX2"}, GRAVITON_3),
    ],
)
def test_switches_hide_what_their_libraries_document(
    present: tuple[str, ...], environment: dict[str, str], left: tuple[str, ...]
) -> None:
    assert visible_to_torch(present, environment) == left


def test_the_switches_that_are_set_are_named(tmp_path: Path) -> None:
    environment = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "", "OMP_NUM_THREADS": "1"}
    assert hiding_switches(environment) == {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo(captured.ZEN_4))
    assert effective_instruction_sets(path, environment) == AVX2


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="asks torch on x86")
@pytest.mark.parametrize("switch", ["", "avx2", "default"])
def test_torch_sees_the_same(switch: str) -> None:
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    environment = {"ATEN_CPU_CAPABILITY": switch} if switch else {}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    left = visible_to_torch(instruction_sets(), environment)
    expected = "AVX512" if "avx512f" in left else "AVX2" if {"avx2", "fma"} <= set(left) else "DEFAULT"
    assert done.stdout.strip() == expected


def test_cores_are_at_least_one_and_no_more_than_usable() -> None:
    assert 1 <= physical_cores() <= usable_cores()
