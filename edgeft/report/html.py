"""The report as one HTML file: no script, no font, no picture from anywhere else; charts are inline SVG."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any
from urllib.parse import quote

from edgeft.page import page
from edgeft.report.figures import figures
from edgeft.report.mistake_tables import MATRIX
from edgeft.report.numbers import milliseconds, share, size, three
from edgeft.report.table import Table
from edgeft.report.tables import (
    HASHES,
    is_good,
    measured_tables,
    origin_tables,
    preparation_tables,
    verdict_line,
    verdict_table,
)

FOLDED = (HASHES, "Recipe", "Definitions")
HEAT = ((0.5, "heat3"), (0.2, "heat2"), (0.0, "heat1"))
"""From which share of a row a cell of the confusion matrix has which shade."""


def to_html(report: Mapping[str, Any], run: str | None = None) -> str:
    """The whole report, the verdict first. `run` is the way from the page to the run's folder (`..`), for links to
    the files of its stages; None: no links."""
    verdict = [verdict_table(report["verdict"])] if report["verdict"] else []
    tables = [*verdict, *measured_tables(report), *preparation_tables(report), *origin_tables(report)]
    tables = [table for table in tables if table.rows]
    charts = figures(report)
    links = "".join(f'<li><a href="#{_id(table.title)}">{escape(table.title)}</a></li>' for table in tables)
    sections = "\n".join(_section(table, charts.get(table.title, []), run) for table in tables)
    tiles = "".join(_tiles(report))
    header = f"{_badge(report['verdict'])}{''.join(_warning(text) for text in report['warnings'])}"
    header += f'<dl class="tiles">{tiles}</dl>' if tiles else ""
    contents = f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n' if links else ""
    return page(report["recipe"].get("name") or "report", "edgeft report", header, f"{contents}{sections}")


def _badge(verdict: Mapping[str, Any] | None) -> str:
    if not verdict:
        return '<p class="badge">No verdict: the gate has not run</p>'
    kind = "pass" if is_good(verdict) else "" if verdict["passed"] else "fail"
    return f'<p class="badge {kind}">{escape(verdict_line(verdict))}</p>'


def _warning(text: str) -> str:
    return f'<p class="badge fail">{escape(text)}</p>'


def _tiles(report: Mapping[str, Any]) -> Iterator[str]:
    """The shipped file in five numbers."""
    shipped = next((row for row in (report["candidates"] or {"rows": []})["rows"] if row["ships"]), None)
    if shipped is None:
        return
    if shipped["value"] is not None:
        low, high = shipped["ci95"]
        yield _tile(report["candidates"]["metric"], share(shipped["value"]), f"95 %: {low:.3f} to {high:.3f}")
    yield _tile("size", size(shipped["size_bytes"]), shipped["label"])
    noisy = "on a disturbed machine" if shipped["noisy"] else ""
    if shipped["ttft_ms_p95"] is not None:
        yield _tile("time to first token, p95", milliseconds(shipped["ttft_ms_p95"]), noisy)
    if shipped["decode_tokens_per_s"] is not None:
        yield _tile("decoding", f"{three(shipped['decode_tokens_per_s'])} tok/s", noisy)
    if shipped["kl_mean"] is not None:
        yield _tile("KL to the trained model", three(shipped["kl_mean"]), "nats a token, mean")


def _tile(name: str, value: str, note: str) -> str:
    small = f"<small>{escape(note)}</small>" if note else ""
    return f"<div><dt>{escape(name)}</dt><dd>{escape(value)}{small}</dd></div>"


def _section(table: Table, charts: list[str], run: str | None) -> str:
    drawn = f'<div class="figures">{"".join(charts)}</div>' if charts else ""
    body = f"{drawn}<div>{_table(table, run)}{_notes(table, run)}</div>"
    if len(charts) == 1:
        body = f'<div class="beside">{body}</div>'
    head = f"<h2>{escape(table.title)}</h2>"
    if table.title in FOLDED:
        return f'<details id="{_id(table.title)}"><summary>{head}</summary>{body}</details>'
    return f'<section id="{_id(table.title)}">{head}{body}</section>'


def _table(table: Table, run: str | None) -> str:
    names = [column.removeprefix(">") for column in table.columns]
    kinds = ["n" if column.startswith(">") else "" for column in table.columns]
    head = "".join(
        f'<th scope="col"{_class(kind)}>{escape(name)}</th>' for name, kind in zip(names, kinds, strict=True)
    )
    heat = _heat(table) if table.title == MATRIX else {}
    rows = "".join(
        f"<tr>{''.join(_cell(table, run, *cell, heat.get((at, place), '')) for place, cell in enumerate(cells))}</tr>"
        for at, cells in enumerate([list(zip(names, row, kinds, strict=True)) for row in table.rows])
    )
    named = f'role="region" tabindex="0" aria-label="{escape(table.title)}, table"'
    shown = f"<thead><tr>{head}</tr></thead>" if any(table.columns) else ""
    return f'<div class="scroll" {named}><table{_class(_form(table))}>{shown}<tbody>{rows}</tbody></table></div>'


def _form(table: Table) -> str:
    """Which of the forms that the style knows the table has."""
    if table.title == MATRIX:
        return "matrix"
    if table.long_texts:
        return "texts"
    return "wide" if len(table.columns) == 2 or table.columns[-1] in ("sha256", "what") else ""


def _heat(table: Table) -> dict[tuple[int, int], str]:
    """Shades of a confusion matrix by row and column: how large a share of its row a cell is."""
    shades = {}
    for at, row in enumerate(table.rows):
        counts = [int(cell.replace(",", "")) for cell in row[1:]]
        for place, n in enumerate(counts, 1):
            if n:
                side = "right" if place == at + 1 else "wrong"
                shades[at, place] = f"{side} {next(name for least, name in HEAT if n / sum(counts) >= least)}"
    return shades


def _cell(table: Table, run: str | None, column: str, text: str, kind: str, shade: str) -> str:
    """`data-c` is the column's name, which the style shows beside the cell where the place is narrow."""
    verdict = text.lower() if text in ("pass", "FAIL") else ""
    label = f' data-c="{escape(column)}"' if column else ""
    return f"<td{_class(' '.join(filter(None, (kind, shade, verdict))))}{label}>{_linked(table, run, text)}</td>"


def _linked(table: Table, run: str | None, text: str) -> str:
    if run is None or text not in table.links:
        return escape(text)
    return f'<a href="{escape(quote(f"{run}/{table.links[text]}"))}">{escape(text)}</a>'


def _class(names: str) -> str:
    return f' class="{names}"' if names else ""


def _notes(table: Table, run: str | None) -> str:
    items = "".join(f"<li>{_linked(table, run, note)}</li>" for note in table.notes)
    return f'<ul class="notes">{items}</ul>' if items else ""


def _id(title: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in title.lower())
