"""`edgeft gate RECIPE`, or `edgeft gate RUN_DIR|bench.json --budget "exact_match: >= 0.9"`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeft.cli._options import is_recipe, json_option, set_option, workdir_option
from edgeft.cli._output import print_json, show_verdict

if TYPE_CHECKING:
    from edgeft.bench.gate import Results, Verdict

PATH = click.Path(path_type=Path, dir_okay=False)
STEP_SUMMARY = "GITHUB_STEP_SUMMARY"


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft gate`."""

    @click.command(
        name, help=f"{text} Exit code 3 when one is not met.\n\nTARGET is a recipe, a run's folder or a bench.json."
    )
    @click.argument("target", type=click.Path(path_type=Path))
    @click.option("--budget", "budgets", multiple=True, metavar="TEXT", help='e.g. "exact_match >= 0.90".')
    @click.option("--budgets", "budgets_file", type=PATH, help="YAML or JSON file of {metric: budget}.")
    @click.option("--baseline", metavar="NAME", help="Stored baseline, for budgets like `>= 0.95x baseline`.")
    @click.option("--save-baseline", metavar="NAME", help="Store what was measured, when every budget is met.")
    @click.option("--junit", type=PATH, help="Write JUnit XML there.")
    @click.option("--markdown", type=PATH, help="Write a Markdown table there.")
    @click.option("--github", is_flag=True, help=f"Print annotations; add the table to ${STEP_SUMMARY}.")
    @set_option
    @workdir_option
    @json_option
    def gate_command(
        target: Path, overrides: tuple[str, ...], workdir: Path, as_json: bool, budgets: tuple[str, ...], **given: Any
    ) -> None:
        if is_recipe(target):
            from edgeft.cli.stage import run_until

            if budgets or any(given.values()):
                raise click.UsageError("with a recipe, budgets stand in its section `gate` (or --set gate.…)")
            run_until(target, name, force=False, overrides=overrides, workdir=workdir, as_json=as_json)
        else:
            _judge(target, budgets, as_json=as_json, **given)

    return gate_command


def _judge(
    target: Path,
    texts: tuple[str, ...],
    *,
    budgets_file: Path | None,
    baseline: str | None,
    save_baseline: str | None,
    as_json: bool,
    **outputs: Any,
) -> None:
    from edgeft.errors import ArtifactError, GateFailed
    from edgeft.extras import extra_needed

    with extra_needed("gguf"):
        from edgeft.bench import baseline as stored
        from edgeft.bench.budgets import parse_budget, split_budget
        from edgeft.bench.gate import judge_results, read_results
    budgets = (_read_budgets(budgets_file) if budgets_file else {}) | dict(split_budget(text) for text in texts)
    if not budgets and not save_baseline:
        raise click.UsageError('nothing to judge by; give --budget, e.g. --budget "exact_match >= 0.90"')
    for metric, text in budgets.items():  # before any file is opened; a metric may be of this run's own
        parse_budget(metric, text, measured=budgets)
    results = read_results(target)
    against = stored.Baseline.read(stored.baseline_path(baseline), results.host) if baseline else None
    verdict = judge_results(results, budgets, against)
    _write(verdict, results, as_json=as_json, **outputs)
    if results.failure:
        raise ArtifactError(f"{target}: not a complete measurement ({results.failure}); run edgeft bench again")
    if not verdict.passed:
        failed = sum(not row.ok for row in verdict.rows)
        raise GateFailed(f"{failed} of {len(verdict.rows)} budgets are not met")
    if save_baseline:
        path = stored.baseline_path(save_baseline)
        values = {name: one.value for name, one in results.measured.items()}
        stored.save_baseline(path, values, results.host, file=results.file)
        click.echo(f"baseline saved: {path}", err=True)


def _read_budgets(path: Path) -> dict[str, str]:
    """Budgets of a YAML or JSON file. Raises UsageError."""
    import yaml

    from edgeft.errors import UsageError

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        hint = 'a budget starts with > or <, so quote it: ttft_ms_p95: "<= 120ms"'
        raise UsageError(f"{path}: not YAML ({' '.join(str(error).split())}); {hint}") from None
    if not isinstance(content, dict) or not all(isinstance(word, str) for pair in content.items() for word in pair):
        raise UsageError(f'{path}: must be a mapping of metric to budget, e.g. exact_match: ">= 0.90"')
    return content


def _write(
    verdict: "Verdict", results: "Results", *, as_json: bool, junit: Path | None, markdown: Path | None, github: bool
) -> None:
    from edgeft.artifact import write_atomic
    from edgeft.bench.annotations import to_annotations, to_markdown
    from edgeft.bench.junit import to_junit
    from edgeft.report.terminal import verdict_text

    if junit is not None:
        write_atomic(junit, to_junit(verdict, file=results.file, host=results.host))
    if markdown is not None:
        write_atomic(markdown, to_markdown(verdict, file=results.file))
    if github:
        if summary := os.environ.get(STEP_SUMMARY):
            with Path(summary).open("a", encoding="utf-8") as file:  # other steps write there as well
                file.write(to_markdown(verdict, file=results.file))
        for line in to_annotations(verdict, file=results.file):
            click.echo(line, err=as_json)  # GitHub reads both streams; JSON must stay alone on stdout
    if as_json:
        print_json({"file": results.file, "failure": results.failure, **verdict.to_json()})
    else:
        show_verdict(verdict_text(verdict.to_json()))
