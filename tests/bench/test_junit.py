"""JUnit XML against the schema of Jenkins' xunit plugin, Markdown and annotations against their escaping rules."""

import re
from xml.etree import ElementTree

import pytest

from edgeft.bench.annotations import to_annotations, to_markdown
from edgeft.bench.gate import Measured, Verdict, judge
from edgeft.bench.junit import to_junit

# junit-10.xsd of the xunit plugin: element -> (required attributes, optional ones, elements allowed inside).
SCHEMA = {
    "testsuites": (set(), {"name", "time", "tests", "failures", "errors"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors"},
        {"group", "time", "skipped", "timestamp", "hostname", "id", "package", "file", "log", "url"},
        {"testsuite", "properties", "testcase", "system-out", "system-err"},
    ),
    "properties": (set(), set(), {"property"}),
    "property": ({"name", "value"}, set(), set()),
    "testcase": (
        {"name"},
        {"time", "classname", "group"},
        {"skipped", "error", "failure", "rerunFailure", "rerunError", "flakyFailure", "flakyError", "system-out",
         "system-err"},
    ),
    "failure": (set(), {"type", "message"}, set()),
    "error": (set(), {"type", "message"}, set()),
    "system-out": (set(), set(), set()),
}  # fmt: skip
TIME = re.compile(r"(([0-9]{0,3},)*[0-9]{3}|[0-9]{0,3})*(\.[0-9]*)?")
HOST = {"cpu": "A <&> B", "n_cores": 4, "backend": {"llama": "1"}}


def check(element: ElementTree.Element) -> None:
    required, optional, inside = SCHEMA[element.tag]
    assert required <= set(element.attrib) <= required | optional, element.tag
    assert TIME.fullmatch(element.get("time", ""))
    assert element.tag in ("system-out", "failure", "error") or not (element.text or "").strip()
    for child in element:
        assert child.tag in inside
        check(child)


@pytest.fixture
def verdict() -> Verdict:
    budgets = {"exact_match": ">= 90%", "size_bytes": "<= 8MB", "kl_mean": "<= 0.01", "json_valid": ">= 0.9"}
    measured = {
        "exact_match": Measured(0.92, 300, (0.884, 0.946)),
        "size_bytes": Measured(10e6),
        "json_valid": Measured(1.0),
    }
    return judge(budgets, measured)


def test_junit_keeps_to_the_schema_and_counts(verdict: Verdict) -> None:
    root = ElementTree.fromstring(to_junit(verdict, file='a "b" <c> \x00.gguf', host=HOST))
    assert root.tag == "testsuites"
    check(root)
    (suite,) = root
    cases = suite.findall("testcase")
    assert int(suite.get("tests", "")) == len(cases) == 4
    assert int(suite.get("failures", "")) == len(suite.findall("testcase/failure")) == 1
    assert int(suite.get("errors", "")) == len(suite.findall("testcase/error")) == 1
    assert cases[0].get("classname") == 'a "b" <c> \N{REPLACEMENT CHARACTER}.gguf'
    assert {p.get("name"): p.get("value") for p in suite.iter("property")} == {"cpu": "A <&> B", "n_cores": "4"}
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.get("message") == "size_bytes = 1e+07 bytes, budget <= 8MB, room -2e+06 bytes (-25.0 %)"


def test_junit_of_no_budgets() -> None:
    check(ElementTree.fromstring(to_junit(judge({}, {}), file="m", host={})))


def test_markdown_is_one_table(verdict: Verdict) -> None:
    lines = to_markdown(verdict, file="a|b\n`c`").splitlines()
    assert lines[0] == "### FAIL: a\\|b 'c': 2 of 4 budgets not met"
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 6
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {7}
    assert lines[-1] == "- `kl_mean`: not measured"
    assert to_markdown(judge({}, {}), file="m").startswith("### PASS, but no accuracy budget: m: all 0 budgets met")
    assert any(
        line.startswith("| **FAIL** | `size_bytes` | 10 MB | `<= 8MB` | 8 MB | -2 MB (-25.0 %)") for line in table
    )


def test_annotations_escape_as_githubs_toolkit(verdict: Verdict) -> None:
    # escapeData: % CR LF; escapeProperty: these and : , (actions/toolkit, packages/core/src/command.ts)
    lines = to_annotations(verdict, file="a,b")
    assert [line.split(" ")[0] for line in lines] == ["::warning", "::error", "::error"]
    assert lines[1] == (
        "::error title=a%2Cb%3A size_bytes::size_bytes = 1e+07 bytes, budget <= 8MB, room -2e+06 bytes (-25.0 %25)"
    )
    assert all("\n" not in line for line in lines)
