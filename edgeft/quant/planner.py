"""Which type each tensor gets, for the least divergence in a given number of bytes or the least bytes for a given one.

A multiple-choice knapsack: every tensor takes one of its options, divergences (`edgeft.quant.sensitivity`) add
up, and so do bytes. It is solved by dynamic programming over bytes, exactly where all sizes are multiples of a
unit that divides the range into at most MAX_UNITS steps, and otherwise with sizes rounded up to that unit, after
which what is left over is spent on the best improvements that still fit.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.artifact import write_atomic
from edgeft.errors import ArtifactError, UsageError
from edgeft.quant.ggml import GgmlType, row_bytes

ALIGNMENT = 32
"""Bytes that GGUF pads the data of a tensor to."""

MAX_UNITS = 1 << 16
FORMAT = 1


@dataclass(frozen=True)
class Option:
    """A type a tensor may take."""

    kind: str
    """Name of a GgmlType."""
    n_bytes: int
    """Data of the tensor, padded as in the file."""
    divergence: float
    """KL to the unquantized model that it adds, nats a token."""


@dataclass(frozen=True)
class MixPlan:
    """The types of a mix. Tensors it does not name keep the type of their file."""

    tensors: Mapping[str, Option]
    """By GGUF name."""
    target_bytes: int | None
    """What `n_bytes` was to stay within; None where `max_kl` decided."""
    max_kl: float | None

    @property
    def types(self) -> dict[str, GgmlType]:
        """For `write_gguf(types=…)` and for training on the grid of the export."""
        return {name: GgmlType[option.kind] for name, option in self.tensors.items()}

    @property
    def n_bytes(self) -> int:
        """Data of the tensors named."""
        return sum(option.n_bytes for option in self.tensors.values())

    @property
    def divergence(self) -> float:
        """KL expected of them all, nats a token."""
        return sum(option.divergence for option in self.tensors.values())

    def table(self) -> str:
        """One line for each type: tensors, megabytes, share of the expected KL; and what the whole comes to."""
        lines = [f"{'type':<8}{'tensors':>8}{'MB':>10}{'of KL':>8}"]
        kinds = sorted({option.kind for option in self.tensors.values()}, key=_bits_of)
        for kind in kinds:
            options = [option for option in self.tensors.values() if option.kind == kind]
            share = sum(option.divergence for option in options) / (self.divergence or 1.0)
            n_bytes = sum(option.n_bytes for option in options)
            lines.append(f"{kind:<8}{len(options):>8}{n_bytes / 1e6:>10.3f}{share:>8.0%}")
        lines.append(f"{'all':<8}{len(self.tensors):>8}{self.n_bytes / 1e6:>10.3f}{self.divergence:>9.2g} nats a token")
        return "\n".join(lines)


def tensor_bytes(kind: GgmlType, shape: Sequence[int]) -> int:
    """Bytes of a tensor's data in a GGUF file, padding included. Raises ValueError when rows do not divide."""
    n_bytes = math.prod(shape[:-1]) * row_bytes(kind, shape[-1])
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def plan_mix(
    options: Mapping[str, Sequence[Option]], *, target_bytes: int | None = None, max_kl: float | None = None
) -> MixPlan:
    """The best mix within `target_bytes` of tensor data, or the smallest with an expected KL of at most `max_kl`.

    Exactly one of the two is given. Raises UsageError when no mix is small, or good, enough.
    """
    if (target_bytes is None) == (max_kl is None):
        raise UsageError("ftype auto: give either target_bytes or max_kl")
    useful = {name: _useful(choices) for name, choices in options.items()}
    least = sum(choices[0].n_bytes for choices in useful.values())
    most = sum(choices[-1].n_bytes for choices in useful.values())
    if target_bytes is not None and target_bytes < least:
        raise UsageError(f"target_bytes {target_bytes:,}: the smallest mix of these types has {least:,}; raise it")
    room = min(target_bytes if target_bytes is not None else most, most) - least
    unit = _unit(useful, room)
    tables = _tables(useful, unit, room // unit)
    budget = room // unit
    if max_kl is not None:
        good = np.flatnonzero(tables.best <= max_kl)
        if not len(good):
            raise UsageError(f"max_kl {max_kl:g}: the best mix of these types comes to {tables.best[-1]:.2g}; raise it")
        budget = int(good[0])
    chosen = tables.choices(useful, unit, budget)
    if target_bytes is not None:
        chosen = _spend_rest(useful, chosen, target_bytes)
    return MixPlan(chosen, target_bytes, max_kl)


def write_plan(path: Path, plan: MixPlan) -> None:
    """Write `plan` as JSON, atomically."""
    content: dict[str, Any] = {
        "format": FORMAT,
        "target_bytes": plan.target_bytes,
        "max_kl": plan.max_kl,
        "n_bytes": plan.n_bytes,
        "divergence": plan.divergence,
        "tensors": {name: asdict(option) for name, option in plan.tensors.items()},
    }
    write_atomic(path, json.dumps(content, indent=1) + "\n")


def read_plan(path: Path, shapes: Mapping[str, Sequence[int]] | None = None) -> MixPlan:
    """The plan in `path`. With `shapes` (by GGUF name) it must be a plan for a model of those tensors.

    Raises ArtifactError when the file is missing or no plan, or made for another model.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ArtifactError(f"{path}: a mix plan of format {content['format']}, not {FORMAT}; plan again")
        tensors = {name: Option(**option) for name, option in content["tensors"].items()}
        plan = MixPlan(tensors, content["target_bytes"], content["max_kl"])
        kinds = plan.types
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: not a mix plan ({type(error).__name__}: {error}); plan again") from None
    if shapes is None:
        return plan
    for name, kind in kinds.items():
        if name not in shapes or _bytes_or_none(kind, shapes[name]) != tensors[name].n_bytes:
            raise ArtifactError(f"{path}: made for another model: {name} does not fit; plan again")
    return plan


def _bytes_or_none(kind: GgmlType, shape: Sequence[int]) -> int | None:
    try:
        return tensor_bytes(kind, shape)
    except ValueError:
        return None


def _bits_of(kind: str) -> float:
    return row_bytes(GgmlType[kind], 256) / 32


def _useful(choices: Sequence[Option]) -> list[Option]:
    """By size, without those that another one beats in bytes and divergence."""
    kept: list[Option] = []
    for option in sorted(choices, key=lambda option: (option.n_bytes, option.divergence)):
        if not kept or option.divergence < kept[-1].divergence:
            kept.append(option)
    return kept


def _unit(useful: Mapping[str, list[Option]], room: int) -> int:
    """The bytes of one step: the largest that divides every difference in size, or a MAX_UNITS-th of the room."""
    exact = math.gcd(*(option.n_bytes - options[0].n_bytes for options in useful.values() for option in options))
    return max(exact, -(-room // MAX_UNITS), 1)


@dataclass(frozen=True)
class _Tables:
    best: np.ndarray
    """(units + 1,) least divergence in at most so many units over the smallest mix."""
    taken: np.ndarray
    """(tensors, units + 1) uint8: the option of each tensor in that mix of it and those before it."""

    def choices(self, useful: Mapping[str, list[Option]], unit: int, budget: int) -> dict[str, Option]:
        chosen = {}
        for (name, options), taken in zip(reversed(list(useful.items())), reversed(self.taken), strict=True):
            chosen[name] = options[taken[budget]]
            budget -= _units(chosen[name], options, unit)
        return {name: chosen[name] for name in useful}


def _tables(useful: Mapping[str, list[Option]], unit: int, n_units: int) -> _Tables:
    best = np.zeros(n_units + 1)
    taken = np.zeros((len(useful), n_units + 1), np.uint8)
    for row, options in enumerate(useful.values()):
        before, best = best, best + options[0].divergence
        for number, option in enumerate(options[1:], 1):
            units = _units(option, options, unit)
            if units > n_units:
                break
            other = before[: n_units + 1 - units] + option.divergence
            better = other < best[units:]
            best[units:][better] = other[better]
            taken[row, units:][better] = number
    return _Tables(best, taken)


def _units(option: Option, options: Sequence[Option], unit: int) -> int:
    """Of the smallest option none, of another what it has more, rounded up."""
    return -(-(option.n_bytes - options[0].n_bytes) // unit)


def _spend_rest(
    useful: Mapping[str, list[Option]], chosen: Mapping[str, Option], target_bytes: int
) -> dict[str, Option]:
    """Take the change that helps most and still fits, until none does."""
    chosen = dict(chosen)
    while True:
        left = target_bytes - sum(option.n_bytes for option in chosen.values())
        gains = [
            (chosen[name].divergence - option.divergence, name, option)
            for name, options in useful.items()
            for option in options
            if 0 < option.n_bytes - chosen[name].n_bytes <= left
        ]
        if not gains:
            return chosen
        _, name, option = max(gains, key=lambda gain: gain[0])
        chosen[name] = option
