"""The result of a check as plain data."""

from typing import TYPE_CHECKING, Any

from edgeft.data.check.codes import CODES

if TYPE_CHECKING:
    from edgeft.data.check.engine import Checked, FileSummary


def as_dict(checked: "Checked") -> dict[str, Any]:
    """For --json and the data stage's report: findings, counts by code, numbers by file."""
    return {
        "errors": checked.n_errors,
        "counts": {code: n for code, n in sorted(checked.counts.items()) if n},
        "findings": [
            {
                "code": found.code,
                "severity": CODES[found.code].severity,
                "file": found.path,
                "line": found.line,
                "what": CODES[found.code].title,
                "detail": found.detail,
                "advice": CODES[found.code].advice,
            }
            for found in checked.findings
        ],
        "files": [_file(summary) for summary in checked.files],
    }


def _file(summary: "FileSummary") -> dict[str, Any]:
    answers = sum(summary.answer_chars.values())
    return {
        "file": str(summary.path),
        "format": summary.format,
        "bytes": summary.n_bytes,
        "lines": summary.n_lines,
        "examples": summary.n_examples,
        "characters": summary.n_chars,
        "json_answer_share": summary.n_json / answers if answers else 0.0,
        "roles": dict(summary.roles),
        "turns": {str(n): count for n, count in sorted(summary.turns.items())},
        "answer_characters_below": {str(2**bits): n for bits, n in sorted(summary.answer_chars.items())},
        "labels": dict(summary.labels.most_common(50)),
        "different_labels": len(summary.labels),
        "languages_of_sample": dict(summary.languages.most_common()),
        "sampled_for_language": len(summary.sample),
        "searched_for_personal_data": len(summary.personal),
        "tokens": summary.tokens,
    }
