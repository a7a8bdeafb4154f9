"""How near a run comes to what this machine can do: its read bandwidth and multiply-add rate, measured once.

Decoding a token reads every weight and the keys and values so far, so its bound is bandwidth / bytes read. A prompt
multiplies every weight with every token, so its bound is multiply-adds per second / multiply-adds of a token.
S. Williams, A. Waterman and D. Patterson, "Roofline: an insightful visual performance model for multicore
architectures", Communications of the ACM 52 (2009) 65-76.

The machine is measured with numpy, in a child process (`edgeft.bench.roofline_kernels`), and remembered in the user's
cache folder for each host and thread count.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeft.artifact import write_atomic
from edgeft.bench.host import describe_host
from edgeft.errors import ArtifactError, RuntimeFault

if TYPE_CHECKING:
    from edgeft.console import Log

KERNELS = (sys.executable, "-m", "edgeft.bench.roofline_kernels")
ONE_BLAS_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)
"""The kernels make their own threads, and numpy's library reads these when it is loaded."""
TIMEOUT_S = 120
IDENTIFYING = ("cpu", "memory_bytes", "os", "governor", "turbo")


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

    Those of a busy machine are used and not remembered. Raises RuntimeFault when the measuring child fails.
    """
    path = (folder or cache_folder()) / f"roofline-{_fingerprint()}.json"
    known = _read(path)
    if n_threads in known:
        return known[n_threads]
    log.say(f"measuring this machine's memory and multiply-adds with {n_threads} thread(s), once")
    peaks = _measure(n_threads)
    if peaks.noisy:
        log.say("the machine is busy, so its peaks are higher than measured now; they are not remembered")
        return peaks
    try:
        content = {str(n): asdict(each) for n, each in (known | {n_threads: peaks}).items()}
        write_atomic(path, json.dumps(content, indent=1) + "\n")
    except ArtifactError as error:
        log.say(f"not remembered: {error}")
    return peaks


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/edgeft`, or `~/.cache/edgeft`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeft"


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


def _measure(n_threads: int) -> Machine:
    environment = os.environ | ONE_BLAS_THREAD
    command = [*KERNELS, str(n_threads)]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise RuntimeFault(f"the machine's roofline cannot be measured ({' '.join(last)}); leave it out: --no-roofline")
    return Machine(n_threads, **json.loads(done.stdout))


def _fingerprint() -> str:
    host = describe_host()
    return hashlib.sha256(json.dumps([host[name] for name in IDENTIFYING]).encode()).hexdigest()[:16]


def _read(path: Path) -> dict[int, Machine]:
    """What was remembered, by number of threads; nothing, when the file is missing or damaged."""
    try:
        return {int(n): Machine(**peaks) for n, peaks in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
