"""A verdict as JUnit XML, which CI systems show as tests: one case for each budget.

The format is the one Jenkins' xunit plugin publishes as junit-10.xsd, which GitLab, Azure and GitHub actions read as
well: https://github.com/jenkinsci/xunit-plugin (src/main/resources/org/jenkinsci/plugins/xunit/types/model/xsd).
"""

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from edgeft.bench.gate import Row, Verdict

SUITE = "edgeft.gate"
FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 (section 2.2) has no place for, not even escaped."""


def to_junit(verdict: Verdict, *, file: str, host: Mapping[str, Any]) -> str:
    """XML text with one suite named SUITE; `file` is the class of its cases.

    A budget that is not met is a failure; one whose metric has no number is an error: nothing was measured.
    """
    broken = sum(not row.ok and row.measured is not None for row in verdict.rows)
    absent = sum(not row.ok and row.measured is None for row in verdict.rows)
    counts = {"tests": str(len(verdict.rows)), "failures": str(broken), "errors": str(absent)}
    root = ElementTree.Element("testsuites", {"name": "edgeft", **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": SUITE, **counts, "skipped": "0"})
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in host.items():
        if isinstance(value, str | int | float):
            ElementTree.SubElement(properties, "property", {"name": name, "value": _clean(str(value))})
    for row in verdict.rows:
        case = {"name": _clean(f"{row.metric} {row.text}"), "classname": _clean(file), "time": "0"}
        _result(ElementTree.SubElement(suite, "testcase", case), row)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def _result(case: ElementTree.Element, row: Row) -> None:
    if row.ok:
        ElementTree.SubElement(case, "system-out").text = _clean(describe_row(row))
    else:
        kind = "error" if row.measured is None else "failure"
        ElementTree.SubElement(case, kind, {"type": "budget", "message": _clean(describe_row(row))})


def describe_row(row: Row) -> str:
    """`ttft_ms_p95 = 130 ms, budget <= 120ms, 10 ms too much (-8 %)` in plain words and full precision."""
    if row.measured is None:
        return f"{row.metric}: {row.note}; budget {row.text}"
    unit = "" if row.unit in ("share", "number") else f" {row.unit}"
    stored = "" if row.baseline is None else f" (baseline {row.baseline:g}{unit}, limit {row.limit:g}{unit})"
    percent = "" if row.margin_percent is None else f" ({row.margin_percent:+.1f} %)"
    note = f"; {row.note}" if row.note else ""
    return f"{row.metric} = {row.measured:g}{unit}, budget {row.text}{stored}, room {row.margin:g}{unit}{percent}{note}"


def _clean(text: str) -> str:
    return FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)
