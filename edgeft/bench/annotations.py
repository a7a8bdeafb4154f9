"""A verdict where a CI run shows it: a Markdown summary and GitHub's workflow commands.

https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands
"""

from edgeft.bench.budgets import BYTES, NUMBER, SHARE
from edgeft.bench.gate import Row, Verdict
from edgeft.bench.junit import describe_row


def to_markdown(verdict: Verdict, *, file: str) -> str:
    """A heading, the verdict and a table of measured value, budget and room left."""
    failed = sum(not row.ok for row in verdict.rows)
    outcome = f"{failed} of {len(verdict.rows)} budgets not met" if failed else f"all {len(verdict.rows)} budgets met"
    passed = "PASS" if verdict.judges_accuracy else "PASS, but no accuracy budget"
    lines = [
        f"### {'FAIL' if failed else passed}: {_cell(file)}: {outcome}",
        "",
        "| | metric | measured | budget | limit | room left |",
        "|---|---|--:|---|--:|--:|",
        *(_table_row(row) for row in verdict.rows),
    ]
    notes = [f"- `{_cell(row.metric)}`: {_cell(row.note)}" for row in verdict.rows if row.note]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def to_annotations(verdict: Verdict, *, file: str) -> list[str]:
    """GitHub workflow commands: an error for each budget that is not met, a warning where noise could decide."""
    lines = []
    for row in verdict.rows:
        if not row.ok or row.note:
            kind = "warning" if row.ok else "error"
            title = _property(f"{file}: {row.metric}")
            lines.append(f"::{kind} title={title}::{_message(describe_row(row))}")
    return lines


def _table_row(row: Row) -> str:
    measured, limit, room = "-", "-", "-"
    if row.measured is not None and row.margin is not None:
        measured, limit = _number(row.measured, row.unit), _number(row.limit, row.unit)
        room = _number(row.margin, row.unit).removeprefix("-")
        room = f"{'-' if row.margin < 0 else '+'}{room}"
        if row.margin_percent is not None:
            room += f" ({row.margin_percent:+.1f} %)"
    outcome = "noise" if row.within_noise else "pass" if row.ok else "**FAIL**"
    cells = (outcome, f"`{_cell(row.metric)}`", measured, f"`{_cell(row.text)}`", limit, room)
    return f"| {' | '.join(cells)} |"


def _number(value: float, unit: str) -> str:
    """A number as people read it: `4.78 MB`, `12.3 ms`, `0.9533`."""
    if unit == BYTES:
        name, scale = next(((n, s) for n, s in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)) if abs(value) >= s), ("B", 1.0))
        return f"{value / scale:.3g} {name}"
    plain = f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return plain if unit in (SHARE, NUMBER) else f"{plain} {unit}"


def _cell(text: str) -> str:
    """Text that cannot end a cell, a line or a code span of a Markdown table."""
    return " ".join(text.replace("|", "\\|").replace("`", "'").split())


def _message(text: str) -> str:
    """Escaped as the toolkit's `escapeData`."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """Escaped as the toolkit's `escapeProperty`."""
    return _message(text).replace(":", "%3A").replace(",", "%2C")
