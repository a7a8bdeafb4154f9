"""The result of a check as plain data."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeft.data.check.codes import CODES

if TYPE_CHECKING:
    from edgeft.data.check.engine import Checked, FileSummary


def as_dict(checked: "Checked", folder: Path | None = None) -> dict[str, Any]:
    """For --json and the data stage's report: findings, counts by code, numbers by file. Files in `folder` are
    called by their names in it."""
    return {
        "errors": checked.n_errors,
        "counts": {code: n for code, n in sorted(checked.counts.items()) if n},
        "findings": [
            {
                "code": found.code,
                "severity": CODES[found.code].severity,
                "file": named(found.path, folder),
                "line": found.line,
                "what": CODES[found.code].title,
                "detail": found.detail,
                "advice": CODES[found.code].advice,
            }
            for found in checked.findings
        ],
        "files": [_file(summary, folder) for summary in checked.files],
    }


def named(path: str, folder: Path | None) -> str:
    """The path, inside `folder` without it."""
    return str(Path(path).relative_to(folder)) if folder and Path(path).is_relative_to(folder) else path


def _file(summary: "FileSummary", folder: Path | None) -> dict[str, Any]:
    answers = sum(summary.answer_chars.values())
    return {
        "file": named(str(summary.path), folder),
        "format": summary.format,
        "encoding": summary.encoding,
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
