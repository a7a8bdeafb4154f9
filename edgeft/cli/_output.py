"""Plain tables for people and JSON for machines, on stdout."""

import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import click

UNJUDGED = ("PASS, but no accuracy budget is set", "PASS, no accuracy budget")
COLOURS = {"PASS": "green", "pass": "green", "FAIL": "red"} | dict.fromkeys(UNJUDGED, "yellow")
WORDS = f"(?:{'|'.join(UNJUDGED)}|PASS|FAIL)"
# A verdict begins its line (an error's after that word), or is a cell of a table.
VERDICT = re.compile(
    rf"(?m)^{WORDS}(?=:|$)|(?<=^error: ){WORDS}(?=:)|(?<=  ){WORDS}(?=  )|(?<=^  )pass(?=  )|(?<= )(?:pass|FAIL)$"
)


def print_json(value: Any) -> None:
    """One JSON document on stdout. A number that is none (NaN, infinite) is null: JSON has no word for it."""
    click.echo(json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False))


def refuse_to_overwrite(path: Path, force: bool) -> None:
    """Raise UsageError when there is something at `path` and nobody said --force. `-` is stdout."""
    if path != Path("-") and path.exists() and not force:
        raise click.UsageError(f"{path}: is already there, not overwritten; choose another name, or add --force")


def has_colour(stream: TextIO) -> bool:
    """Whether what is written to `stream` may have colours: a terminal, unless NO_COLOR (https://no-color.org) is set
    or the terminal is a dumb one."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def show_verdict(text: str) -> None:
    """Print a text with verdicts in it, in colour where stdout has colours."""
    click.echo(coloured(text) if has_colour(sys.stdout) else text, nl=not text.endswith("\n"))


def coloured(text: str) -> str:
    """`text` with its verdicts in the one green and the one red. A PASS that no wrong answer could have changed
    ("PASS, but no accuracy budget", "PASS, no accuracy budget") is yellow."""
    return VERDICT.sub(lambda found: click.style(found[0], fg=COLOURS[found[0]], bold=True), text)


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
