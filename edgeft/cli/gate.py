"""`edgeft gate RECIPE`, or `edgeft gate RUN_DIR|bench.json --budget "exact_match: >= 0.9"`."""

from pathlib import Path

import click

from edgeft.cli._options import is_recipe, json_option, set_option, workdir_option
from edgeft.cli._output import print_json


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft gate`."""

    @click.command(
        name, help=f"{text} Exit code 3 when one is not met.\n\nTARGET is a recipe, a run's folder or a bench.json."
    )
    @click.argument("target", type=click.Path(path_type=Path))
    @click.option("--budget", "budgets", multiple=True, metavar="TEXT", help='e.g. "exact_match >= 0.90".')
    @set_option
    @workdir_option
    @json_option
    def gate_command(
        target: Path, budgets: tuple[str, ...], overrides: tuple[str, ...], workdir: Path, as_json: bool
    ) -> None:
        if is_recipe(target):
            from edgeft.cli.stage import run_until

            if budgets:
                raise click.UsageError("with a recipe, budgets stand in its section `gate` (or --set gate.…)")
            run_until(target, name, force=False, overrides=overrides, workdir=workdir, as_json=as_json)
        else:
            _judge(target, dict(_split(text) for text in budgets), as_json)

    return gate_command


def _split(text: str) -> tuple[str, str]:
    """`exact_match >= 0.9`, `exact_match: >= 0.9` and `exact_match=>= 0.9` as (metric, budget)."""
    start = next((at for at, letter in enumerate(text) if not (letter.isalnum() or letter == "_")), len(text))
    budget = text[start:].strip()
    if budget[:1] in (":", "=") and not budget.startswith("=="):
        budget = budget[1:].strip()
    return text[:start], budget


def _judge(target: Path, budgets: dict[str, str], as_json: bool) -> None:
    from edgeft.errors import GateFailed
    from edgeft.extras import extra_needed
    from edgeft.report.terminal import verdict_text

    with extra_needed("gguf"):
        from edgeft.bench.gate import judge_folder
    if not budgets:
        raise click.UsageError('nothing to judge by; give --budget, e.g. --budget "exact_match >= 0.90"')
    verdict = judge_folder(target, budgets)
    content = verdict.to_json()
    if as_json:
        print_json(content)
    else:
        click.echo(verdict_text(content), nl=False)
    if not verdict.passed:
        failed = sum(not row.ok for row in verdict.rows)
        raise GateFailed(f"{failed} of {len(verdict.rows)} budgets are not met")
