"""The check as one HTML file: no script, no font, no picture from anywhere else."""

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from edgeft.data.check.codes import CODES
from edgeft.data.check.summary import named

if TYPE_CHECKING:
    from edgeft.data.check.engine import Checked, FileSummary

WORST = 20
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;
color:#222;background:#fff}
table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{text-align:left;padding:.2rem .8rem .2rem 0;
border-bottom:1px solid #ddd;vertical-align:top}td.n{text-align:right}.bar{background:#4878a8;height:.8rem}
.error{color:#a40000}.warning{color:#8a5a00}h2{margin-top:2rem}code{font-size:.9em}"""


def html_report(checked: "Checked", folder: Path | None = None) -> str:
    """Counts by code, distributions of each file, and the first findings of every code."""
    body = [f"<h1>Data check</h1><p>{checked.n_errors} errors in {len(checked.files)} files.</p>"]
    rows = [
        f'<tr><td><code>{code}</code></td><td class="{CODES[code].severity}">{CODES[code].severity}</td>'
        f'<td class="n">{n}</td><td>{escape(CODES[code].title)}</td><td>{escape(CODES[code].advice)}</td></tr>'
        for code, n in sorted(checked.counts.items())
        if n
    ]
    head = "<tr><th>code</th><th>severity</th><th>count</th><th>what</th><th>what to do</th></tr>"
    body.append(f"<table>{head}{''.join(rows)}</table>")
    body += [_file(summary, folder) for summary in checked.files]
    body.append("<h2>Worst offenders</h2>")
    for code in sorted({found.code for found in checked.findings}):
        some = [found for found in checked.findings if found.code == code][:WORST]
        items = "".join(
            f"<li><code>{escape(named(f.path, folder))}{f':{f.line}' if f.line else ''}</code> {escape(f.detail)}</li>"
            for f in some
        )
        body.append(f"<h3>{code} {escape(CODES[code].title)} ({checked.counts[code]})</h3><ul>{items}</ul>")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>edgeft data check</title>'
        f"<style>{STYLE}</style><body>{''.join(body)}</body></html>\n"
    )


def _file(summary: "FileSummary", folder: Path | None) -> str:
    parts = [
        f"<h2>{escape(named(str(summary.path), folder))}</h2><p>{summary.format}, {summary.n_examples} examples in "
        f"{summary.n_lines} lines, {summary.n_chars} characters.</p>"
    ]
    lengths = {f"&lt; {2**bits}": n for bits, n in sorted(summary.answer_chars.items())}
    parts.append(_bars("Characters of the answer", lengths))
    parts.append(_bars("Turns", {str(n): count for n, count in sorted(summary.turns.items())}))
    if summary.tokens:
        tokens = {f"&le; {n}": count for n, count in summary.tokens["histogram"].items()}
        parts.append(_bars(f"Tokens ({summary.tokens['truncation_share']:.1%} longer than max_length)", tokens))
    if summary.languages:
        parts.append(_bars("Languages of a sample", dict(summary.languages.most_common(8))))
    if 1 < len(summary.labels) <= 1000:
        parts.append(_bars("Most frequent short answers", {escape(k): n for k, n in summary.labels.most_common(30)}))
    return "".join(parts)


def _bars(title: str, counts: dict[str, int]) -> str:
    """`counts` maps HTML to a number."""
    if not counts:
        return ""
    largest = max(counts.values())
    rows = "".join(
        f'<tr><td>{name}</td><td class="n">{n}</td><td style="width:20rem"><div class="bar" '
        f'style="width:{100 * n / largest:.1f}%"></div></td></tr>'
        for name, n in counts.items()
    )
    return f"<h3>{title}</h3><table>{rows}</table>"
