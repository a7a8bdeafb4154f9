"""Whether bfloat16 products are faster than float32 ones here, by what the processor or GPU says of itself.

Without instructions for them, torch multiplies bfloat16 several times slower than float32 (9 times on AVX2, torch
2.13). With AVX-512 alone oneDNN multiplies them by converting, and which type is faster only a measurement tells.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeft.machine.instruction_sets import hiding_switches, visible_to_torch

BF16_PRODUCTS = ("avx512_bf16", "amx_bf16", "bf16")
"""Instruction sets that multiply bfloat16."""
BY_CONVERSION = ("avx512f", "avx_ne_convert")
"""Instruction sets with which oneDNN takes bfloat16 too, multiplied as float32."""
FIRST_GPU = (8, 0)
"""Compute capability from which NVIDIA's GPUs multiply bfloat16 (CUDA C++ Programming Guide, tensor cores)."""
FASTER = 1.1
"""Of float32's speed: what bfloat16 must reach at least where both are measured, being less exact."""


@dataclass(frozen=True)
class ComputeType:
    """The type whose products are fastest, and why, as half a sentence; `dtype` is "" where it must be measured."""

    dtype: str
    reason: str

    def __str__(self) -> str:
        return f"{self.dtype}: {self.reason}"


def by_capability(
    present: Sequence[str],
    environment: Mapping[str, str],
    gpu: tuple[int, int] | None = None,
    platform: str = sys.platform,
) -> ComputeType:
    """The type for a processor with the instruction sets `present`, or for a GPU of compute capability `gpu`.

    `environment` may hide instructions from torch (`instruction_sets.SWITCHES`).
    """
    if gpu is not None:
        named = f"the GPU has compute capability {gpu[0]}.{gpu[1]}"
        if gpu >= FIRST_GPU:
            return ComputeType("bfloat16", f"{named} and multiplies it")
        return ComputeType("float32", f"{named}, and bfloat16 products begin with {FIRST_GPU[0]}.{FIRST_GPU[1]}")
    visible = visible_to_torch(present, environment)
    found = [name for name in BF16_PRODUCTS if name in visible]
    if found and platform == "darwin":
        return ComputeType("", "torch for macOS has no oneDNN, so what the processor could do does not tell")
    if found:
        return ComputeType("bfloat16", f"this processor multiplies it ({', '.join(found)})")
    if unclear := [name for name in BY_CONVERSION if name in visible]:
        return ComputeType("", f"this processor has {' and '.join(unclear)}, but no bfloat16 products")
    if not visible:
        return ComputeType("", "this system does not tell what its processor can do")
    hidden = [name for name in (*BF16_PRODUCTS, *BY_CONVERSION) if name in present]
    if hidden:
        switches = " and ".join(f"{name}={value}" for name, value in hiding_switches(environment).items())
        return ComputeType("float32", f"{switches} hides what this processor has for bfloat16 ({', '.join(hidden)})")
    best = [name for name in visible if name in ("avx2", "avx", "neon", "sse41")][-1:]
    return ComputeType("float32", f"this processor has no bfloat16 products ({', '.join(best) or visible[-1]})")


def by_measurement(bfloat16: float, float32: float) -> ComputeType:
    """The type by the speed of its products, in FLOP/s of one thread."""
    measured = f"measured here, one thread: bfloat16 {bfloat16 / 1e9:.0f} GFLOP/s, float32 {float32 / 1e9:.0f}"
    return ComputeType("bfloat16" if bfloat16 >= FASTER * float32 else "float32", measured)
