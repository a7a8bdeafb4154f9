"""What a child process measures of this machine, once: kept for each host in the user's cache folder.

A child, because the libraries that measure are loaded with the environment they want, and gone again afterwards.
"""

import hashlib
import json
import os
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeft.artifact import write_atomic
from edgeft.bench.host import describe_host
from edgeft.children import ask_once
from edgeft.errors import ArtifactError, RuntimeFault

if TYPE_CHECKING:
    from edgeft.console import Log

ONE_BLAS_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)
"""The children make their own threads; the libraries read these when they are loaded."""
TIMEOUT_S = 120
IDENTIFYING = ("cpu", "memory_bytes", "os", "governor", "turbo")


@dataclass(frozen=True)
class Probe:
    """`command` prints one JSON object: `fields`, and `noisy` by `edgeft.bench.noise`. `name` is that of its file,
    `what` it measures, as people say it, and `otherwise` what to do where it fails."""

    name: str
    command: tuple[str, ...]
    fields: Set[str]
    what: str
    otherwise: str


def measured_once(probe: Probe, key: str, log: "Log", folder: Path | None = None) -> dict[str, Any]:
    """What the child printed, from the cache `folder` or measured now; `key` tells settings of one host apart.

    What a busy machine gave is used and not remembered. Raises RuntimeFault when the child fails.
    """
    path = (folder or cache_folder()) / f"{probe.name}-{_fingerprint()}.json"
    known = _read(path, probe.fields)
    if key in known:
        return known[key]
    log.say(f"measuring this machine's {probe.what}, once")
    found = _measure(probe)
    if found["noisy"]:
        log.say("the machine is busy, so it is faster than measured now; not remembered")
        return found
    try:
        write_atomic(path, json.dumps(known | {key: found}, indent=1) + "\n")
    except ArtifactError as error:
        log.say(f"not remembered: {error}")
    return found


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/edgeft`, or `~/.cache/edgeft`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeft"


def _measure(probe: Probe) -> dict[str, Any]:
    what, wanted = f"measuring this machine's {probe.what}", probe.fields | {"noisy"}
    try:
        return ask_once(probe.command, what, TIMEOUT_S, fields=wanted, environment=ONE_BLAS_THREAD)
    except RuntimeFault as error:
        raise RuntimeFault(f"{error}\n{probe.otherwise}") from None


def _fingerprint() -> str:
    host = describe_host()
    return hashlib.sha256(json.dumps([host[name] for name in IDENTIFYING]).encode()).hexdigest()[:16]


def _read(path: Path, fields: Set[str]) -> dict[str, dict[str, Any]]:
    """What was remembered, by key; nothing, when the file is missing or damaged."""
    try:
        known: dict[str, dict[str, Any]] = json.loads(path.read_bytes())
        return known if all(fields | {"noisy"} == each.keys() for each in known.values()) else {}
    except (OSError, ValueError, AttributeError):
        return {}
