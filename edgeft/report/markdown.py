"""The report as Markdown (GitHub's tables), the verdict first."""

from collections.abc import Mapping
from typing import Any

from edgeft.report.table import Table
from edgeft.report.tables import report_tables, verdict_line


def to_markdown(report: Mapping[str, Any]) -> str:
    """The whole report; nothing is cut."""
    blocks = [f"# {report['recipe'].get('name', 'Report')}"]
    tables = report_tables(report)
    if report["verdict"]:
        blocks.append(f"**{_escaped(verdict_line(report['verdict']))}**")
        tables = [tables[-1], *tables[:-1]]
    blocks += [f"> **{_escaped(text)}**" for text in report["warnings"]]
    blocks += [_section(table) for table in tables]
    return "\n\n".join(blocks) + "\n"


def _section(table: Table) -> str:
    head = [_row(tuple(column.removeprefix(">") for column in table.columns))]
    rule = "|" + "|".join("---:" if column.startswith(">") else "---" for column in table.columns) + "|"
    lines = [f"## {table.title}", "", *head, rule, *(_row(row) for row in table.rows)]
    lines += ["", *(f"- {_escaped(note)}" for note in table.notes)] if table.notes else []
    return "\n".join(lines)


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(_escaped(cell) for cell in cells) + " |"


def _escaped(text: str) -> str:
    """Characters that Markdown would read as its own: text from a recipe or a model must stay text."""
    return "".join(f"\\{c}" if c in "\\`*_{}<>#|" else c for c in text).replace("\n", " ")
