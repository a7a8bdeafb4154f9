"""Plain tables for people and JSON for machines, on stdout."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click


def print_json(value: Any) -> None:
    """One JSON document on stdout. A number that is none (NaN, infinite) is null: JSON has no word for it."""
    click.echo(json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False))


def refuse_to_overwrite(path: Path, force: bool) -> None:
    """Raise UsageError when there is something at `path` and nobody said --force. `-` is stdout."""
    if path != Path("-") and path.exists() and not force:
        raise click.UsageError(f"{path}: is already there, not overwritten; choose another name, or add --force")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; a column whose cells are all numbers is set to the right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    right = [all(cell[:1].isdigit() or cell in ("", "-") for cell in column[1:]) for column in columns]
    lines = []
    for row in (header, *rows):
        cells = [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def size(n_bytes: float) -> str:
    """`950 B`, `7.3 MB`, `1.2 GB`; powers of 1000."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.3g} {unit}"
    return f"{n_bytes:.0f} B"
