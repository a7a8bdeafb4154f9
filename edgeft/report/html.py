"""The report as one HTML file: no script, no font, no picture from anywhere else; charts are inline SVG."""

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from edgeft.report.figures import figures
from edgeft.report.numbers import milliseconds, share, size, three
from edgeft.report.table import Table
from edgeft.report.tables import (
    is_good,
    measured_tables,
    origin_tables,
    preparation_tables,
    verdict_line,
    verdict_table,
)

STYLE = Path(__file__).parent.parent / "assets" / "report.css"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
FOLDED = ("Artifacts", "Recipe", "Definitions")


def to_html(report: Mapping[str, Any]) -> str:
    """The whole report, the verdict first."""
    verdict = [verdict_table(report["verdict"])] if report["verdict"] else []
    tables = [*verdict, *measured_tables(report), *preparation_tables(report), *origin_tables(report)]
    charts = figures(report)
    name = escape(report["recipe"].get("name") or "report")
    links = "".join(f'<li><a href="#{_id(table.title)}">{escape(table.title)}</a></li>' for table in tables)
    sections = "\n".join(_section(table, charts.get(table.title, [])) for table in tables)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><link rel="icon" href="data:,">'
        f"<title>{name}: edgeft report</title><style>{STYLE.read_text(encoding='utf-8')}</style></head>\n"
        f'<body><main><header><p class="kicker">edgeft report</p><h1>{name}</h1>{_badge(report["verdict"])}'
        f"{''.join(_warning(text) for text in report['warnings'])}"
        f'<dl class="tiles">{"".join(_tiles(report))}</dl></header>\n'
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n{sections}\n</main></body></html>\n'
    )


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


def _section(table: Table, charts: list[str]) -> str:
    drawn = f'<div class="figures">{"".join(charts)}</div>' if charts else ""
    body = f"{drawn}<div>{_table(table)}{_notes(table)}</div>"
    if len(charts) == 1:
        body = f'<div class="beside">{body}</div>'
    head = f"<h2>{escape(table.title)}</h2>"
    if table.title in FOLDED:
        return f'<details id="{_id(table.title)}"><summary>{head}</summary>{body}</details>'
    return f'<section id="{_id(table.title)}">{head}{body}</section>'


def _table(table: Table) -> str:
    classes = ["n" if column.startswith(">") else "" for column in table.columns]
    head = "".join(
        f'<th scope="col"{_class(kind)}>{escape(column.removeprefix(">"))}</th>'
        for column, kind in zip(table.columns, classes, strict=True)
    )
    rows = "".join(
        f"<tr>{''.join(_cell(cell, kind) for cell, kind in zip(row, classes, strict=True))}</tr>" for row in table.rows
    )
    wide = ' class="wide"' if len(table.columns) == 2 or table.columns[-1] in ("sha256", "what") else ""
    named = f'role="region" tabindex="0" aria-label="{escape(table.title)}, table"'
    shown = f"<thead><tr>{head}</tr></thead>" if any(table.columns) else ""
    return f'<div class="scroll" {named}><table{wide}>{shown}<tbody>{rows}</tbody></table></div>'


def _cell(text: str, kind: str) -> str:
    verdict = text.lower() if text in ("pass", "FAIL") else ""
    return f"<td{_class(' '.join(filter(None, (kind, verdict))))}>{escape(text)}</td>"


def _class(names: str) -> str:
    return f' class="{names}"' if names else ""


def _notes(table: Table) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return f'<ul class="notes">{items}</ul>' if items else ""


def _id(title: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in title.lower())
