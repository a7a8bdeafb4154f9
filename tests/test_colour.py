"""One green, one red, and neither where nobody can see them."""

import io
from pathlib import Path

import pytest

from edgeft.bench.gate import Measured, judge
from edgeft.cli._output import coloured, has_colour
from edgeft.report.build import build_report
from edgeft.report.terminal import to_terminal, verdict_text
from tests.report_parts import parts

GREEN, RED, YELLOW, END = "\x1b[32m\x1b[1m", "\x1b[31m\x1b[1m", "\x1b[33m\x1b[1m", "\x1b[0m"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("line", "painted"),
    [
        ("PASS: 5 of 5 budgets met", f"{GREEN}PASS{END}: 5 of 5 budgets met"),
        ("FAIL: 1 of 2", f"{RED}FAIL{END}: 1 of 2"),
        ("error: FAIL: 1 of 2", f"error: {RED}FAIL{END}: 1 of 2"),
        ("PASS, but no accuracy budget is set: there", f"{YELLOW}PASS, but no accuracy budget is set{END}: there"),
        ("  pass   exact_match  0.9", f"  {GREEN}pass{END}   exact_match  0.9"),
        ("  FAIL   exact_match  0.9", f"  {RED}FAIL{END}   exact_match  0.9"),
        ("  Q8_0  1.000  1.000  pass", f"  Q8_0  1.000  1.000  {GREEN}pass{END}"),
        ("x  done  PASS  runs/x", f"x  done  {GREEN}PASS{END}  runs/x"),
        ("x  done  PASS, no accuracy budget  runs/x", f"x  done  {YELLOW}PASS, no accuracy budget{END}  runs/x"),
        ("to PASS or to FAIL is a question", "to PASS or to FAIL is a question"),
        ("PASSED", "PASSED"),
    ],
)
def test_verdicts_are_painted(line: str, painted: str) -> None:
    assert coloured(line) == painted


@pytest.mark.parametrize(("budget", "colour"), [({"exact_match": ">= 0.5"}, GREEN), ({"kl_mean": "<= 1"}, YELLOW)])
def test_green_needs_an_accuracy_budget(budget: dict[str, str], colour: str) -> None:
    verdict = judge(budget, {"exact_match": Measured(0.9, 90, (0.8, 0.95)), "kl_mean": Measured(0.5)}).to_json()
    assert coloured(verdict_text(verdict)).splitlines()[-1].startswith(f"{colour}PASS")


@pytest.mark.parametrize(
    ("stream", "environment", "expected"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"NO_COLOR": ""}, True),  # no-color.org: "when present and not an empty string"
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {}, False),
    ],
)
def test_colour_only_where_it_is_seen(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, environment: dict[str, str], expected: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert has_colour(stream) is expected


def test_a_file_has_no_colour(tmp_path: Path) -> None:
    assert "\x1b" not in to_terminal(build_report(parts()))


def test_texts_of_others_cannot_command_the_terminal() -> None:
    given = parts()
    given["mistakes"]["worst"][0]["got"] = "\x1b[2J\nPASS: all met"
    text = to_terminal(build_report(given))
    assert "\x1b" not in text
    assert "·[2J PASS: all met" in text
