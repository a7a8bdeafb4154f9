"""The report as plain text of at most 80 columns, the verdict last."""

import textwrap
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgeft.report.table import Table
from edgeft.report.tables import VERDICT, report_tables, verdict_line, verdict_table

WIDTH = 80
GAP = "  "
ROWS = 20


def to_terminal(report: Mapping[str, Any]) -> str:
    """The report without its details; the last line is the verdict."""
    name = report["recipe"].get("name")
    warnings = [_wrap(text) for text in report["warnings"]]
    blocks = [f"edgeft report: {name}", *warnings] if name else warnings
    blocks += [_block(_cut(table)) for table in report_tables(report) if not table.detail]
    if report["verdict"]:
        blocks += warnings  # the top has scrolled away
        blocks.append(_wrap(verdict_line(report["verdict"])))
    return "\n\n".join(blocks) + "\n"


def verdict_text(verdict: Mapping[str, Any]) -> str:
    """The table of verdict.json and its line, for commands that judge without a report."""
    return f"{_block(verdict_table(verdict))}\n\n{_wrap(verdict_line(verdict))}\n"


def failed_text(verdict: Mapping[str, Any]) -> str:
    """The line of verdict.json and its broken budgets, for an error message."""
    broken = {"rows": [row for row in verdict["rows"] if not row["ok"]]}
    table = verdict_table(broken)
    return "\n".join([_wrap(verdict_line(verdict)), *_rows(table), *_notes(table)])


def _cut(table: Table) -> Table:
    """The first rows of a long table: slices can be hundreds, and begin with the worst."""
    most = table.most or ROWS
    rows = [tuple(_narrow(cell, table.widest) for cell in row) for row in table.rows]
    rest = len(rows) - most
    if rest <= 0 or table.title == VERDICT:
        return replace(table, rows=rows)
    return replace(table, rows=rows[:most], notes=[f"{rest} more rows in report.html", *table.notes])


def _narrow(text: str, widest: int | None) -> str:
    """One line without what a terminal would obey, cut where it is too long: texts of users and models are shown."""
    text = " ".join(text.split()) if "\n" in text else text
    text = "".join(letter if letter.isprintable() else "·" for letter in text)
    return text if widest is None or len(text) <= widest else f"{text[: widest - 1]}…"


def _block(table: Table) -> str:
    return "\n".join([table.title, *_rows(table), *_notes(table)])


def _notes(table: Table) -> list[str]:
    return [_wrap(f"- {note}", "  ") for note in table.notes]


def _rows(table: Table) -> list[str]:
    names = tuple(column.removeprefix(">") for column in table.columns)
    if table.long_texts:
        return [line for row in table.rows for line in _named_lines(names, row)]
    rows = [names, *table.rows] if any(names) else list(table.rows)
    widths = [max(len(row[place]) for row in rows) for place in range(len(names))]
    excess = 2 + sum(widths) + len(GAP) * (len(widths) - 1) - WIDTH
    if table.shrinks is not None and excess > 0:
        widths[table.shrinks] = max(8, widths[table.shrinks] - excess)
    right = [column.startswith(">") for column in table.columns]
    return [
        ("  " + GAP.join(_cell(c, w, r) for c, w, r in zip(row, widths, right, strict=True))).rstrip() for row in rows
    ]


def _named_lines(names: tuple[str, ...], row: tuple[str, ...]) -> list[str]:
    """A row of texts too long to stand beside each other: the first, and below it the others by name."""
    widest = max(map(len, names[1:]))
    lines = [f"  {row[0]}", *(f"    {name:{widest}}  {text}" for name, text in zip(names[1:], row[1:], strict=True))]
    return [line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…" for line in lines]


def _cell(text: str, width: int, right: bool) -> str:
    if len(text) > width:
        text = text[: width - 1] + "…"
    return text.rjust(width) if right else text.ljust(width)


def _wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")
