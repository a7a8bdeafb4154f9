"""Which instruction sets that matter to matrix products this processor has, and which of them torch will use.

Names are ours, one for each fact a kernel is chosen by:

| name | what | flags of Linux |
|---|---|---|
| sse41, avx, avx2, fma, f16c | floats of 4 and 8 lanes; product and sum in one; float16 to float32 | the same |
| avx512f | floats of 16 lanes, with the parts every kernel wants beside it | avx512f, avx512bw, avx512vl, avx512dq |
| avx_vnni, avx512_vnni | products of int8 with sums in 32 bits | the same |
| avx_ne_convert, avx512_bf16, amx_bf16 | bfloat16: conversions; products of vectors; products of tiles | the same |
| avx512_fp16, amx_int8 | float16 products of vectors; int8 products of tiles | the same |
| neon, dotprod, fp16 | of ARM: vectors; int8 products; float16 products | asimd; asimddp; fphp, asimdhp |
| i8mm, bf16, sve | of ARM: int8 and bfloat16 matrix products; long vectors | the same |

Two switches hide instructions from torch: `ATEN_CPU_CAPABILITY` from its own kernels (torch,
aten/src/ATen/native/DispatchStub.cpp) and `ONEDNN_MAX_CPU_ISA` from oneDNN, which multiplies its matrices (oneDNN,
"CPU Dispatcher Control"). They hide nothing from onnxruntime and llama.cpp.
"""

import ctypes
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# Name -> the flags of Linux that must all be there.
FLAGS: dict[str, tuple[str, ...]] = {
    "sse41": ("sse4_1",),
    "avx": ("avx",),
    "avx2": ("avx2",),
    "fma": ("fma",),
    "f16c": ("f16c",),
    "avx_vnni": ("avx_vnni",),
    "avx_ne_convert": ("avx_ne_convert",),
    "avx512f": ("avx512f", "avx512bw", "avx512vl", "avx512dq"),
    "avx512_vnni": ("avx512_vnni",),
    "avx512_bf16": ("avx512_bf16",),
    "avx512_fp16": ("avx512_fp16",),
    "amx_int8": ("amx_tile", "amx_int8"),
    "amx_bf16": ("amx_tile", "amx_bf16"),
    "neon": ("asimd",),
    "dotprod": ("asimddp",),
    "fp16": ("fphp", "asimdhp"),
    "i8mm": ("i8mm",),
    "bf16": ("bf16",),
    "sve": ("sve",),
}
# The same of macOS: names of `sysctl hw.optional`, each 1 where the processor has it.
SYSCTL = {
    "sse41": "hw.optional.sse4_1",
    "avx": "hw.optional.avx1_0",
    "avx2": "hw.optional.avx2_0",
    "fma": "hw.optional.fma",
    "f16c": "hw.optional.f16c",
    "avx512f": "hw.optional.avx512bw",  # no Mac has avx512bw without f, vl and dq
    "neon": "hw.optional.AdvSIMD",
    "dotprod": "hw.optional.arm.FEAT_DotProd",
    "fp16": "hw.optional.arm.FEAT_FP16",
    "i8mm": "hw.optional.arm.FEAT_I8MM",
    "bf16": "hw.optional.arm.FEAT_BF16",
}
# And of Windows: numbers of IsProcessorFeaturePresent (winnt.h). It does not tell of the others.
WINDOWS = {"sse41": 37, "avx": 39, "avx2": 40, "avx512f": 41, "neon": 19, "dotprod": 43}

ARM = ("neon", "dotprod", "fp16", "i8mm", "bf16", "sve")
AVX2_SETS = ("sse41", "avx", "avx2", "fma", "f16c")
AVX512_SETS = (*AVX2_SETS, "avx512f")
BF16_SETS = (*AVX512_SETS, "avx512_vnni", "avx512_bf16")
# Value of a switch -> what it leaves, on x86. A value that is not here (`avx512`, `ALL`, those with AMX) hides nothing.
ATEN = {"default": ("sse41",), "avx2": (*AVX2_SETS, "avx_vnni", "avx_ne_convert")}
ONEDNN = {
    "sse41": ("sse41",),
    "avx": ("sse41", "avx"),
    "avx2": AVX2_SETS,
    "avx2_vnni": (*AVX2_SETS, "avx_vnni"),
    "avx2_vnni_2": (*AVX2_SETS, "avx_vnni", "avx_ne_convert"),
    "avx512_core": AVX512_SETS,
    "avx512_core_vnni": (*AVX512_SETS, "avx512_vnni"),
    "avx512_core_bf16": BF16_SETS,
    "avx512_core_fp16": (*BF16_SETS, "avx_vnni", "avx512_fp16"),
    "avx10_1_512": (*BF16_SETS, "avx_vnni", "avx512_fp16"),
}
SWITCHES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Environment variables that hide instructions from torch; the last is the old name of the one before."""


def instruction_sets(cpuinfo: Path = CPUINFO) -> tuple[str, ...]:
    """Those of FLAGS that every core has, in the order of FLAGS; empty where the system does not tell.

    `cpuinfo` is read on Linux and Android; macOS and Windows are asked by their own calls where it does not exist.
    """
    try:
        text = cpuinfo.read_text("utf-8", errors="replace")
    except OSError:
        return _elsewhere(sys.platform)
    found = re.findall(r"^(?:flags|Features)[ \t]*:(.*)$", text, re.MULTILINE)
    cores = [set(line.split()) for line in found]
    flags = set.intersection(*cores) if cores else set()
    return tuple(name for name, needed in FLAGS.items() if flags.issuperset(needed))


def visible_to_torch(present: Sequence[str], environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """What the switches in `environment` leave of the instruction sets `present`; those of ARM they leave alone.

    What one of the two hides counts as hidden: who sets either wants to see a machine without. A value that torch or
    oneDNN does not know hides nothing, there as here.
    """
    onednn = environment.get("ONEDNN_MAX_CPU_ISA") or environment.get("DNNL_MAX_CPU_ISA", "")
    left = [ATEN.get(environment.get("ATEN_CPU_CAPABILITY", "")), ONEDNN.get(onednn.lower())]
    return tuple(name for name in present if name in ARM or all(each is None or name in each for each in left))


def effective_instruction_sets(cpuinfo: Path = CPUINFO, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """`instruction_sets` without those that a switch hides from torch."""
    return visible_to_torch(instruction_sets(cpuinfo), environment)


def hiding_switches(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The switches that are set, with their values."""
    return {name: environment[name] for name in SWITCHES if environment.get(name)}


def _elsewhere(platform: str) -> tuple[str, ...]:
    """What macOS or Windows says of itself; empty on other systems."""
    if platform == "darwin":
        return tuple(name for name in FLAGS if name in SYSCTL and _sysctl(SYSCTL[name]))
    if platform == "win32":
        present = ctypes.WinDLL("kernel32").IsProcessorFeaturePresent  # type: ignore[attr-defined, unused-ignore]
        return tuple(name for name in FLAGS if name in WINDOWS and present(WINDOWS[name]))
    return ()


def _sysctl(name: str) -> int:
    """The number macOS keeps under `name`; 0 where it keeps none."""
    value, size = ctypes.c_int64(0), ctypes.c_size_t(8)
    failed = ctypes.CDLL(None).sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0)
    return 0 if failed else value.value
