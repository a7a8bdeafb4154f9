"""`edgeft compare A B`: is file B faster or slower than file A on this machine?"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeft.cli._options import json_option, output_option
from edgeft.cli._output import print_json

if TYPE_CHECKING:
    from edgeft.bench.compare import Comparison


INTERRUPTED = 130


class Share(click.ParamType):
    """`5%` or `0.05`, above 0 and below 1."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(%?)\s*", str(value))
        share = float(match[1]) * (0.01 if match[2] else 1) if match else 0.0
        if not 0 < share < 1:
            self.fail(f"{value!r} is not a share; write one like 5% or 0.05", param, ctx)
        return share


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft compare`."""

    @click.command(
        name,
        help=f"{text}\n\nA and B are model files, bundles, folders of runs, or REVISION:path of this git repository. "
        "Both run in turn in fresh processes. Exit code 3 when B is slower than --max-slowdown allows.",
    )
    @click.argument("a", metavar="A")
    @click.argument("b", metavar="B")
    @click.option("--metric", metavar="NAME", help="What is compared. [decode_tokens_per_s]")
    @click.option("--max-slowdown", type=Share(), metavar="SHARE", help="Fail when B is slower by more, e.g. 5%.")
    @click.option("--strict", is_flag=True, help="Fail as well when such a slowdown cannot be excluded.")
    @click.option("--same-within", type=Share(), metavar="SHARE", help="A change that is called the same. [3%]")
    @click.option("--runs", type=click.IntRange(8), help="Pairs of fresh processes, at most. [15]")
    @click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Longest time for all runs. [5]")
    @click.option("--bursts", type=click.IntRange(1), help="Bursts of either file in a run, at most. [64]")
    @click.option("--n-gen", type=click.IntRange(2), help="Tokens of a burst. [41]")
    @click.option("--n-ctx", type=click.IntRange(8), help="Context window, in tokens. [512]")
    @click.option("--n-threads", type=click.IntRange(1), help="CPU threads.")
    @click.option("--clock", type=click.Choice(["auto", "cpu", "wall"]), help="See docs/gating.md. [auto]")
    @click.option("--seed", type=int, help="Seed of the random order. [0]")
    @click.option("--data", type=click.Path(path_type=Path), help="Chat JSONL; its first example is the prompt.")
    @output_option("Write every raw sample there, after each run.")
    @json_option
    def compare_command(
        a: str, b: str, max_slowdown: float | None, strict: bool, as_json: bool, data: Path | None, out: Path | None,
        **plan: Any,
    ) -> None:  # fmt: skip
        if strict and max_slowdown is None:
            raise click.UsageError("--strict needs --max-slowdown")
        found = _compare(a, b, data, out, {key: value for key, value in plan.items() if value is not None})
        _show(found, out, as_json)
        if found.stopped == "interrupted":
            click.get_current_context().exit(INTERRUPTED)
        decide(found, max_slowdown, strict)

    return compare_command


def _compare(a: str, b: str, data: Path | None, out: Path | None, settings: dict[str, Any]) -> "Comparison":
    from tempfile import TemporaryDirectory

    from edgeft.console import terminal_log
    from edgeft.extras import extra_needed

    with extra_needed("gguf"):
        from edgeft.bench.compare import QUESTION, ComparePlan, compare
        from edgeft.bench.examples import read_examples
        from edgeft.bench.sides import find_side
    example = read_examples(data)[0] if data else QUESTION
    with TemporaryDirectory() as scratch:
        sides = find_side(a, Path(scratch)), find_side(b, Path(scratch))
        plan = ComparePlan(**settings)
        return compare(*sides, plan, example=example, log=terminal_log(), keep=lambda found: _write(found, out))


def _show(found: "Comparison", out: Path | None, as_json: bool) -> None:
    _write(found, out)
    if as_json:
        print_json({name: value for name, value in found.to_json().items() if name != "pairs"})
    else:
        click.echo(comparison_text(found))


def _write(found: "Comparison", out: Path | None) -> None:
    import json

    from edgeft.artifact import write_atomic

    if out is not None:
        write_atomic(out, json.dumps(found.to_json(), indent=1) + "\n")


def decide(found: "Comparison", max_slowdown: float | None, strict: bool) -> None:
    """Raise RuntimeFault for a comparison that a file ended, GateFailed where B is slower than allowed."""
    from edgeft.errors import GateFailed, RuntimeFault

    if found.failure is not None:
        raise RuntimeFault(f"the comparison ended after {len(found.ratios)} runs: {found.failure}")
    if max_slowdown is not None and found.exceeds(max_slowdown, strict=strict):
        how = "may be slower" if strict else "is slower"
        raise GateFailed(f"{found.b} {how} than {found.a} by more than {max_slowdown:.3g} (a share of the time)")


def comparison_text(found: "Comparison") -> str:
    """A comparison in a few lines of at most 80 columns, the outcome last."""
    lines = [f"A: {found.a}", f"B: {found.b}", f"metric: {found.plan.metric}, {len(found.ratios)} runs"]
    if found.stopped:
        lines[-1] += f" in {found.seconds / 60:.1f} minutes, then {found.stopped}"
    if found.interval is None:
        return "\n".join([*lines, "no outcome: too few runs were finished for an interval"])
    ratio = found.interval
    lines.append(f"speed of B / speed of A: {ratio.ratio:.4f} [{ratio.low:.4f}, {ratio.high:.4f}]")
    lines.append(f"smallest change that so many runs detect nine times of ten: {100 * (found.detectable or 0):.1f} %")
    if found.seconds and found.detectable:
        minutes, runs = 4 * found.seconds / 60, 4 * len(found.ratios)
        lines.append(
            f"with {0.75 * minutes:.2g} more minutes about {50 * found.detectable:.1f} % "
            f"(--minutes {max(1, round(minutes))} --runs {runs})"
        )
    change = 100 * (ratio.ratio - 1)
    outcome = {
        "faster": f"faster: B is faster than A by {change:.1f} %",
        "slower": f"slower: B is slower than A by {-change:.1f} %",
        "same": f"same within {100 * found.plan.same_within:g} %",
        "inconclusive": f"inconclusive: about {found.more_runs} more runs would settle it (--runs)",
    }
    partial = " (partial: a file failed)" if found.failure else ""
    return "\n".join([*lines, outcome[found.outcome] + partial])
