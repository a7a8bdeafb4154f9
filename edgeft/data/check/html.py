"""The check as one HTML file: no script, no font, no picture from anywhere else."""

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from edgeft.data.check.codes import CODES
from edgeft.data.check.summary import named
from edgeft.page import page

if TYPE_CHECKING:
    from edgeft.data.check.engine import Checked, FileSummary

WORST = 20


def html_report(checked: "Checked", folder: Path | None = None, report: str | None = None) -> str:
    """Counts by code, the first findings of every code, and distributions of each file. `report` is the way from the
    page to the run's report, if it has one."""
    kind = "fail" if checked.n_errors else "pass"
    link = f'<p><a href="{escape(report)}">The report of the run</a></p>' if report else ""
    header = (
        f'<p class="badge {kind}">{plural(checked.n_errors, "error")} in {plural(len(checked.files), "file")}</p>{link}'
    )
    body = [_counts(checked)] if any(checked.counts.values()) else []
    for code in sorted({found.code for found in checked.findings}):
        some = [found for found in checked.findings if found.code == code][:WORST]
        items = "".join(
            f"<li><code>{escape(named(f.path, folder))}{f':{f.line}' if f.line else ''}</code> {escape(f.detail)}</li>"
            for f in some
        )
        shown = f", the first {WORST}" if checked.counts[code] > WORST else ""
        title = f"{code} {escape(CODES[code].title)} ({checked.counts[code]:,}{shown})"
        body.append(f'<section><h2>{title}</h2><ul class="notes">{items}</ul></section>')
    body += [_file(summary, folder) for summary in checked.files]
    return page("Data check", "edgeft", header, "".join(body))


def _counts(checked: "Checked") -> str:
    names = ("code", "severity", "count", "what", "what to do")
    rows = []
    for code, n in sorted(checked.counts.items()):
        if n:
            found = CODES[code]
            cells = (f"<code>{code}</code>", found.severity, f"{n:,}", escape(found.title), escape(found.advice))
            kinds = ("", found.severity, "n", "", "")
            rows.append("".join(
                f'<td class="{kind}" data-c="{name}">{cell}</td>'
                for name, kind, cell in zip(names, kinds, cells, strict=True)
            ))  # fmt: skip
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        '<section><h2>What was found</h2><div class="scroll"><table class="prose">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def _file(summary: "FileSummary", folder: Path | None) -> str:
    parts = [
        f"<section><h2>{escape(named(str(summary.path), folder))}</h2><p>{summary.format}, "
        f"{plural(summary.n_examples, 'example')} in {plural(summary.n_lines, 'line')}, {summary.n_chars:,} "
        "characters.</p>"
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
    return "".join([*parts, "</section>"])


def _bars(title: str, counts: dict[str, int]) -> str:
    """`counts` maps HTML to a number."""
    if not counts:
        return ""
    largest = max(counts.values())
    rows = "".join(
        f'<tr><td>{name}</td><td class="n">{n:,}</td><td class="meters"><div class="meter" '
        f'style="width:{100 * n / largest:.1f}%"></div></td></tr>'
        for name, n in counts.items()
    )
    return f'<h3>{title}</h3><table class="matrix bars">{rows}</table>'


def plural(number: int, noun: str) -> str:
    """1 → `1 error`, 1200 → `1,200 errors`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
