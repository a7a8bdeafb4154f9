"""Stored measurements to compare with, apart for every kind of machine.

One file holds one baseline: `{"format": 1, "hosts": {fingerprint: {"host": ..., "file": ..., "metrics": ...}}}`.
Saving on another machine adds an entry, so a laptop and a CI runner share a file and never a number: speed is
compared with the entry of the same fingerprint only, accuracy and bytes with any.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from edgeft.artifact import write_atomic
from edgeft.bench.budgets import Budget
from edgeft.errors import ArtifactError, UsageError

FOLDER = Path("baselines")
FORMAT = 1


@dataclass(frozen=True)
class Baseline:
    """The stored values for one machine: `same` were measured on one of its kind, `other` on any kind, the entry
    saved last for preference. `hosts` names the machines that have an entry."""

    path: Path
    same: dict[str, float] | None
    other: dict[str, float]
    hosts: tuple[str, ...]

    @classmethod
    def read(cls, path: Path, host: Mapping[str, Any]) -> Self:
        """Read the baseline at `path` for measurements made on `host`. Raises ArtifactError."""
        entries = _entries(path)
        same = entries.get(fingerprint(host))
        last = list(entries.values())[-1]
        hosts = tuple(_describe(entry["host"]) for entry in entries.values())
        return cls(path, same["metrics"] if same else None, (same or last)["metrics"], hosts)

    def value(self, budget: Budget) -> tuple[float | None, str]:
        """The stored value for a budget's metric, or None and the reason why there is none to compare with."""
        if budget.of_the_machine and self.same is None:
            return None, (
                f"the baseline {self.path} is of another machine ({'; '.join(self.hosts)}), and speeds of different "
                f"machines, instruction sets or builds do not compare; save one here with edgeft bench --save-baseline"
            )
        stored = (self.same or self.other).get(budget.metric)
        if stored is None:
            return None, f"the baseline {self.path} has no {budget.metric}; save it again"
        return stored, ""


def baseline_path(name: str) -> Path:
    """The file of the baseline `name`: `baselines/NAME.json`, or `name` itself when it is a path to a JSON file.

    Raises UsageError for a name that is neither.
    """
    if name.endswith(".json"):
        return Path(name)
    if not name or set(name) & set("/\\:") or name.startswith("."):
        raise UsageError(f"{name!r}: not a name for a baseline; give a plain name like main, or a path to a .json file")
    return FOLDER / f"{name}.json"


def save_baseline(path: Path, metrics: Mapping[str, float], host: Mapping[str, Any], *, file: str) -> str:
    """Store `metrics`, measured on `host` for the model file called `file`; entries of other machines stay.

    Returns the fingerprint. Raises ArtifactError for a file that is no baseline, UsageError when there is nothing
    to store.
    """
    finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
    if not finite:
        raise UsageError(f"{path}: nothing was measured, so there is nothing to save as a baseline")
    entries = _entries(path) if path.exists() else {}
    key = fingerprint(host)
    entries.pop(key, None)  # the entry saved last stands last
    entries[key] = {"host": host_identity(host), "file": file, "metrics": finite}
    write_atomic(path, json.dumps({"format": FORMAT, "hosts": entries}, indent=1) + "\n")
    return key


def host_identity(host: Mapping[str, Any]) -> dict[str, Any]:
    """What makes speeds comparable: processor, its instruction sets, usable cores, system and machine, versions of
    the runtime and what its kernels were compiled with.

    The release of the system is left out: a kernel update does not make another machine. No name is kept.
    """
    words = str(host.get("os") or "").split()
    system = " ".join([*words[:1], *words[-1:]])
    same = {name: host.get(name) for name in ("cpu", "instruction_sets", "n_cores")}
    return same | {"os": system, "backend": host.get("backend", {}), "kernels": host.get("kernels", {})}


def fingerprint(host: Mapping[str, Any]) -> str:
    """16 hex digits of the sha256 of `host_identity`."""
    return hashlib.sha256(json.dumps(host_identity(host), sort_keys=True).encode()).hexdigest()[:16]


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ArtifactError(
            f"{path}: cannot be read ({error.strerror}); save a baseline with edgeft bench --save-baseline NAME"
        ) from None
    except ValueError:
        raise ArtifactError(f"{path}: not valid JSON; save the baseline again") from None
    entries = content.get("hosts") if isinstance(content, dict) and content.get("format") == FORMAT else None
    if not isinstance(entries, dict) or not entries or not all(_is_entry(entry) for entry in entries.values()):
        raise ArtifactError(f"{path}: not a baseline of edgeft; save one with edgeft bench --save-baseline NAME")
    return entries


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(name), dict) for name in ("host", "metrics"))


def _describe(host: Mapping[str, Any]) -> str:
    backend = " ".join(f"{name} {version}" for name, version in host.get("backend", {}).items())
    sets = host.get("instruction_sets")
    told = "instruction sets not recorded" if sets is None else " ".join(sets) or "instruction sets not known"
    kernels = "".join(f"; {name}: {what}" for name, what in host.get("kernels", {}).items())
    machine = f"{host.get('cpu')}, {told}, {host.get('n_cores')} cores, {host.get('os')}"
    return f"{machine}, {backend or 'no backend'}{kernels}"
