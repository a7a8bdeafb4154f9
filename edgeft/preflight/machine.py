"""How fast this machine multiplies, from what /proc/cpuinfo says; nothing is run to find out.

Measured on two cores of an AMD EPYC with AVX-512 and its bfloat16 products, torch 2.13, other jobs beside most of the
runs; FLOP counted as in `training`:

| what | threads | width | GFLOP/s |
|---|---|---|---|
| fine-tuning 135 M parameters with fused adapters, bfloat16 (470 tokens/s) | 1 | 576 | 238 |
| fine-tuning nano with fused adapters, bfloat16 (6,230 tokens/s) | 1 | 256 | 214 |
| the same (7,840 tokens/s) | 2 | 256 | 270 |
| fine-tuning nano in full, bfloat16 (7,550 tokens/s) | 2 | 256 | 294 |
| fine-tuning 135 M parameters with adapters, float32 (160 tokens/s) | 1 | 576 | 81 |
| fine-tuning stories260K in full, float32 (20,500 tokens/s) | 1 | 64 | 28 |

Between them the rate of one thread is peak · width / (width + half), which takes the overhead of small layers for a
share of the time, and of the work the share width / (width + SERIAL_WIDTH) is spread over the threads (Amdahl 1967).
"""

import os
import re
from functools import cache
from pathlib import Path

PEAK = {"bfloat16": 261e9, "float32": 103e9}  # FLOP/s of one thread, of endlessly wide layers
HALF_WIDTH = {"bfloat16": 57, "float32": 155}  # hidden size at which half of it is reached
SERIAL_WIDTH = 300
NARROW = 0.5  # without AVX-512 a vector is half as wide
EMULATED = 0.7  # of the float32 rate, where bfloat16 has no instruction of its own: estimated, not measured
PROMPT_FLOPS_PER_S = 7e10  # a core, llama.cpp reading a prompt
CACHE_BYTES = 32e6


def train_flops_per_s(width: int, dtype: str, threads: int) -> float:
    """FLOP/s of training layers of hidden size `width`, multiplied in `dtype`, on `threads` threads."""
    features = cpu_flags()
    known = bool(features)
    native = not known or bool(features & {"avx512_bf16", "amx_bf16", "bf16"})
    kind = dtype if native else "float32"
    rate = PEAK[kind] * width / (width + HALF_WIDTH[kind]) * (EMULATED if kind != dtype else 1.0)
    if known and not features & {"avx512f", "asimd"}:
        rate *= NARROW
    parallel = width / (width + SERIAL_WIDTH)
    return rate / (1 - parallel + parallel / threads)


def n_threads(wanted: int | None) -> int:
    """Threads a stage will use: `wanted`, or torch's default, one a physical core (OMP_NUM_THREADS is heeded)."""
    own = os.environ.get("OMP_NUM_THREADS", "")
    return wanted or (int(own) if own.isdigit() and int(own) else physical_cores())


@cache
def cpu_flags() -> frozenset[str]:
    """The processor's features as Linux names them; empty where it does not say."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", _cpuinfo(), re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


@cache
def physical_cores() -> int:
    """Cores without their second threads, at most what this process may use; half of all where nothing is known."""
    blocks = [dict(re.findall(r"^(physical id|core id)\s*:\s*(\d+)$", b, re.MULTILINE)) for b in _blocks()]
    cores = {tuple(sorted(block.items())) for block in blocks if "core id" in block}
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return min(len(cores), usable) if cores else max(1, usable // 2)


def decode_seconds(weight_bytes: float) -> float:
    """Seconds for one token in llama.cpp: what it costs to read the weights (50 GB/s in the processor's cache,
    10 GB/s beyond it), and an eighth of a millisecond of everything else."""
    cached = min(weight_bytes, CACHE_BYTES)
    return 1.3e-4 + cached / 5e10 + (weight_bytes - cached) / 1e10


def _blocks() -> list[str]:
    return _cpuinfo().split("\n\n")


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        return ""
