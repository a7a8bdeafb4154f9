"""How near a run comes to what this machine can do: its read bandwidth and multiply-add rate, measured once.

Decoding a token reads every weight and the keys and values so far, so its bound is bandwidth / bytes read. A prompt
multiplies every weight with every token, so its bound is multiply-adds per second / multiply-adds of a token.
S. Williams, A. Waterman and D. Patterson, "Roofline: an insightful visual performance model for multicore
architectures", Communications of the ACM 52 (2009) 65-76.

The machine is measured with numpy, in a child process (`edgeft.bench.roofline_kernels`), and remembered in the user's
cache folder for each host and thread count.
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeft.bench.remembered import Probe, measured_once

if TYPE_CHECKING:
    from edgeft.console import Log

KERNELS = (sys.executable, "-m", "edgeft.bench.roofline_kernels")


@dataclass(frozen=True)
class Machine:
    """Peaks of this host with `n_threads` threads: bytes read from memory, fp32 multiply-adds, both a second.

    `noisy` by `edgeft.bench.noise`: other work kept them low, so shares of them are too high.
    """

    n_threads: int
    read_bytes_per_s: float
    multiply_adds_per_s: float
    noisy: bool


@dataclass(frozen=True)
class Work:
    """What a model has to do. `weight_bytes` are read for each decoded token, `kv_bytes_per_position` for each
    position before it; `prompt_multiply_adds` fall due for each prompt token (None: not known)."""

    weight_bytes: int
    kv_bytes_per_position: int
    prompt_multiply_adds: int | None


def machine(n_threads: int, log: "Log", folder: Path | None = None) -> Machine:
    """The peaks of this host with `n_threads` threads, from the cache `folder` or measured now.

    Raises RuntimeFault when the measuring child fails or takes too long.
    """
    return Machine(n_threads, **measured_once(peaks_probe(n_threads), str(n_threads), log, folder))


def peaks_probe(n_threads: int) -> Probe:
    """What measures `n_threads` threads."""
    return Probe(
        "roofline",
        (*KERNELS, str(n_threads)),
        {"read_bytes_per_s", "multiply_adds_per_s"},
        f"memory and multiply-adds with {n_threads} thread(s)",
        "leave it out with --no-roofline",
    )


def shares(peaks: Machine, work: Work, summary: Mapping[str, Any], mean_position: float) -> dict[str, Any]:
    """The bounds in tokens/s and the share (1: at the bound) that `summary` of a Measurement reaches of them.

    `mean_position` is the mean number of positions before a decoded token.
    """
    read = work.weight_bytes + work.kv_bytes_per_position * mean_position
    adds = work.prompt_multiply_adds
    return {
        **asdict(peaks),
        **asdict(work),
        "decode": _share(peaks.read_bytes_per_s / read, summary["decode_tokens_per_s"]),
        "prompt": _share(peaks.multiply_adds_per_s / adds, summary["prompt_tokens_per_s"]) if adds else None,
    }


def _share(bound: float, achieved: float | None) -> dict[str, float | None]:
    share = None if achieved is None else achieved / bound
    return {"bound_tokens_per_s": bound, "achieved_share": share}
