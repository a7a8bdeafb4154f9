"""What a child process measures of this machine, once: kept for each host in the user's cache folder.

What was measured while the machine was busy is kept too, marked `noisy`, and measured again when it is quiet.

A child, because the libraries that measure are loaded with the environment they want, and gone again afterwards.
"""

import hashlib
import json
import os
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeft.artifact import write_atomic
from edgeft.bench.host import describe_host
from edgeft.children import ask_once
from edgeft.errors import ArtifactError, RuntimeFault
from edgeft.machine.cores import usable_cores
from edgeft.machine.instruction_sets import effective_instruction_sets
from edgeft.machine.process import load_average

if TYPE_CHECKING:
    from edgeft.console import Log

ONE_BLAS_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)
"""The children make their own threads; the libraries read these when they are loaded."""
TIMEOUT_S = 10.0
"""Every probe measures for a second at most; the rest is for a busy machine to load its libraries."""
QUIET_LOAD = 0.3
"""Load average a core below which a machine counts as quiet enough to measure again."""
IDENTIFYING = ("cpu", "memory_bytes", "os", "governor", "turbo")


@dataclass(frozen=True)
class Probe:
    """`command` prints one JSON object: `fields`, and `noisy` by `edgeft.bench.noise`. `name` is that of its file,
    `what` it measures, as people say it, and `otherwise` what to do where it fails.
    `timeout_s` is TIMEOUT_S unless given."""

    name: str
    command: tuple[str, ...]
    fields: Set[str]
    what: str
    otherwise: str
    timeout_s: float | None = None


def measured_once(
    probe: Probe,
    key: str,
    log: "Log",
    folder: Path | None = None,
    *,
    quiet_now: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """What the child printed, from the cache `folder` or measured now; `key` tells settings of one host apart.

    What a busy machine gave is remembered as well, until `quiet_now()` (the load average unless given) allows a
    better measurement. Raises RuntimeFault when nothing is remembered and the child fails or takes longer than
    TIMEOUT_S.
    """
    path = (folder or cache_folder()) / f"{probe.name}-{_fingerprint()}.json"
    known = _read(path, probe.fields)
    earlier = known.get(key)
    if earlier is not None and not (earlier["noisy"] and (quiet_now or is_quiet)()):
        return earlier
    log.say(f"measuring this machine's {probe.what}, once")
    try:
        found = _measure(probe)
    except RuntimeFault:
        if earlier is None:
            raise
        return earlier
    if found["noisy"]:
        log.say("other programs are using this machine; it is measured again when they have ended")
    try:
        write_atomic(path, json.dumps(known | {key: found}, indent=1) + "\n")
    except ArtifactError as error:
        log.say(f"not remembered: {error}")
    return found


def is_quiet() -> bool:
    """Whether few other programs have run in the last minute; yes where the system does not say."""
    load = load_average()
    return load is None or load < QUIET_LOAD * usable_cores()


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/edgeft`, or `~/.cache/edgeft`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeft"


def _measure(probe: Probe) -> dict[str, Any]:
    what, wanted = f"measuring this machine's {probe.what}", probe.fields | {"noisy"}
    try:
        return ask_once(probe.command, what, probe.timeout_s or TIMEOUT_S, fields=wanted, environment=ONE_BLAS_THREAD)
    except RuntimeFault as error:
        raise RuntimeFault(f"{error}\n{probe.otherwise}") from None


def _fingerprint() -> str:
    host = describe_host()
    facts = [*(host[name] for name in IDENTIFYING), effective_instruction_sets()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _read(path: Path, fields: Set[str]) -> dict[str, dict[str, Any]]:
    """What was remembered, by key; nothing, when the file is missing or damaged."""
    try:
        known: dict[str, dict[str, Any]] = json.loads(path.read_bytes())
        return known if all(fields | {"noisy"} == each.keys() for each in known.values()) else {}
    except (OSError, ValueError, AttributeError):
        return {}
