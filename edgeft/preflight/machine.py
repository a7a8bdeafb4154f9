"""How fast this machine is: what two matrix products take here, and what else was measured where they were known.

Trainings measured on two cores of an AMD EPYC with AVX-512 and its bfloat16 products, torch 2.13, other jobs beside
most of the runs; FLOP counted as in `training`:

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

Another machine is told by its float32 products (`edgeft.bench.float32_products`), its bfloat16 products by what
instructions it has for them: these may be 2.5 times slower where float32 ones and everything else are 1.3 times
slower. So the time of a bfloat16 product is taken from the time of training, and what is left is scaled like float32,
which scales the rest of the table as it is.
"""

import os
import sys
from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from edgeft.bench.remembered import Probe, measured_once
from edgeft.errors import RuntimeFault
from edgeft.machine.compute_type import BF16_PRODUCTS, BY_CONVERSION
from edgeft.machine.cores import physical_cores
from edgeft.machine.instruction_sets import effective_instruction_sets

if TYPE_CHECKING:
    from edgeft.console import Log

PEAK = {"bfloat16": 261e9, "float32": 103e9}  # FLOP/s of one thread, of endlessly wide layers
HALF_WIDTH = {"bfloat16": 57, "float32": 155}  # hidden size at which half of it is reached
SERIAL_WIDTH = 300
PROMPT_FLOPS_PER_S = 7e10  # a core, llama.cpp reading a prompt
CACHE_BYTES = 32e6
FLOAT32_PRODUCTS = Probe(
    "float32-products",
    (sys.executable, "-m", "edgeft.bench.float32_products"),
    {"float32"},
    "matrix products",
    "is numpy in order?",
)
WITHOUT_BFLOAT16 = 0.025
"""Speed of training with bfloat16 products over float32's where no instruction helps, torch 2.13 on AVX2.

Measured there in GFLOP/s: the forward product 9.4 (float32 72), the gradient of its input 2.2 (78), that of its weight
22 (64), so both products of a frozen layer 3.5 against 75; in a whole training with LoRA 57 tokens/s against 2,874."""


@dataclass(frozen=True)
class Speed:
    """FLOP/s of one thread in torch's product of two matrices, and what follows."""

    bfloat16: float
    float32: float

    def train_flops_per_s(self, width: int, dtype: str, threads: int) -> float:
        """FLOP/s of training layers of hidden size `width`, multiplied in `dtype`, on `threads` threads."""
        seconds_per_flop = (1 + HALF_WIDTH[dtype] / width) / PEAK[dtype]
        if dtype == "bfloat16":
            seconds_per_flop = 1 / self.bfloat16 + self.seconds(seconds_per_flop - 1 / REFERENCE.bfloat16)
        else:
            seconds_per_flop = self.seconds(seconds_per_flop)
        parallel = width / (width + SERIAL_WIDTH)
        return 1 / (seconds_per_flop * (1 - parallel + parallel / threads))

    def prompt_flops_per_s(self, threads: int) -> float:
        """FLOP/s of llama.cpp reading a prompt."""
        return PROMPT_FLOPS_PER_S * threads / self.seconds(1.0)

    def decode_seconds(self, weight_bytes: float) -> float:
        """Seconds for one token in llama.cpp: what it costs to read the weights (50 GB/s in the processor's cache,
        10 GB/s beyond it), and an eighth of a millisecond of everything else."""
        cached = min(weight_bytes, CACHE_BYTES)
        return self.seconds(1.3e-4 + cached / 5e10 + (weight_bytes - cached) / 1e10)

    def seconds(self, there: float) -> float:
        """What takes `there` seconds on the machine of the table takes here."""
        return there * REFERENCE.float32 / self.float32


REFERENCE = Speed(bfloat16=470e9, float32=107e9)
"""The machine of the table: bfloat16 as measured there, float32 by what the last row took on a machine where both
were measured."""


def speed_of_this_machine(log: "Log", folder: Path | None = None, probe: Probe = FLOAT32_PRODUCTS) -> Speed:
    """Measured once, in a second, and remembered in the user's cache folder (`folder`); that of the table where torch
    is not installed (such a machine trains nothing) and, with a note, where measuring fails or takes too long."""
    if find_spec("torch") is None:
        return REFERENCE
    try:
        float32 = measured_once(probe, "1", log, folder)["float32"]
    except RuntimeFault as error:
        log.say(f"{error}\nThis machine could not be measured; the minutes below are of the reference machine.")
        float32 = REFERENCE.float32
    return Speed(bfloat16_by_instructions(float32, effective_instruction_sets()), float32)


def bfloat16_by_instructions(float32: float, instruction_sets: Collection[str]) -> float:
    """FLOP/s of bfloat16 products from those of float32 ones and what the processor has for them."""
    if set(BF16_PRODUCTS) & set(instruction_sets) or not instruction_sets:
        return float32 * REFERENCE.bfloat16 / REFERENCE.float32
    return float32 * (1.0 if set(BY_CONVERSION) & set(instruction_sets) else WITHOUT_BFLOAT16)


def n_threads(wanted: int | None) -> int:
    """Threads a stage will use: `wanted`, or torch's default, one a physical core (OMP_NUM_THREADS is heeded)."""
    own = os.environ.get("OMP_NUM_THREADS", "")
    return wanted or (int(own) if own.isdigit() and int(own) else physical_cores())
