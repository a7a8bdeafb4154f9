"""parity.json for a terminal."""

import textwrap
from collections.abc import Mapping
from typing import Any

WIDTH = 80
NAME_WIDTH = 18
NUMBERS = {
    "top1_agreement": ("top-1", "{:.3f}"),
    "kl_mean": ("KL mean", "{:.2e}"),
    "kl_p99": ("KL p99", "{:.2e}"),
    "greedy_prefix": ("greedy", "{:.3f}"),
}


def render_table(parity: Mapping[str, Any]) -> str:
    """A line for every form, at most 80 columns wide, and the first that moved beyond tolerance."""
    head = _line("form", [label for label, _ in NUMBERS.values()], "KL step", "")
    lines = [head, "-" * len(head)]
    for row in parity["rows"]:
        if row["form"] == parity["reference"]:
            numbers = ["reference", "", "", ""]
        else:
            numbers = [_number(form, row.get(name)) for name, (_, form) in NUMBERS.items()]
        step = row["previous"] and _number("{:.2e}", row["previous"]["kl_mean"])
        lines.append(_line(row["form"], numbers, step or "", "pass" if row["ok"] else "FAIL"))
    lines += textwrap.wrap(
        f"{parity['prompts']} prompts, {parity['positions']} positions; KL in nats from {parity['reference']}; "
        "KL step: from the form before",
        WIDTH,
    )
    if parity["first_bad"]:
        lines += textwrap.wrap(f"first bad: {parity['first_bad']}", WIDTH, subsequent_indent="  ")
    if finding := parity.get("finding"):
        lines += textwrap.wrap(f"where: {finding['message']}", WIDTH, subsequent_indent="  ")
    return "\n".join(lines)


def _line(name: str, numbers: list[str], step: str, verdict: str) -> str:
    shown = name if len(name) <= NAME_WIDTH else "…" + name[1 - NAME_WIDTH :]
    line = f"{shown:<{NAME_WIDTH}}" + "".join(f"{number:>11}" for number in (*numbers, step)) + f" {verdict}"
    return line.rstrip()


def _number(form: str, value: float | None) -> str:
    return "-" if value is None else form.format(value)
