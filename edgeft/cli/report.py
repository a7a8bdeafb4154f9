"""`edgeft report RECIPE`, or `edgeft report RUN_DIR` for what is already measured."""

import json
import os
from pathlib import Path

import click

from edgeft.cli._options import is_recipe, json_option, set_option, workdir_option
from edgeft.cli._output import print_json, show_verdict
from edgeft.errors import UsageError


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft report`."""

    @click.command(name, help=f"{text}\n\nTARGET is a recipe (missing stages are run) or a run's folder.")
    @click.argument("target", type=click.Path(path_type=Path))
    @click.option("--markdown", is_flag=True, help="Print Markdown.")
    @click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write the page there as well.")
    @set_option
    @workdir_option
    @json_option
    def report_command(
        target: Path, markdown: bool, html: Path | None, overrides: tuple[str, ...], workdir: Path, as_json: bool
    ) -> None:
        if is_recipe(target):
            from edgeft.cli.stage import run_until

            if markdown or html:
                raise click.UsageError("with a recipe, report.md and report.html are in the folder of the stage")
            run_until(target, name, force=False, overrides=overrides, workdir=workdir, as_json=as_json)
        else:
            _show(target, markdown, html, as_json)

    return report_command


def _show(run: Path, markdown: bool, html: Path | None, as_json: bool) -> None:
    from edgeft.artifact import write_atomic
    from edgeft.report.build import build_report
    from edgeft.report.gather import gather
    from edgeft.report.html import to_html
    from edgeft.report.markdown import to_markdown
    from edgeft.report.terminal import to_terminal
    from edgeft.runs import runs_there_are

    folders = {path.name: path for path in sorted(run.iterdir()) if path.is_dir()} if run.is_dir() else {}
    if not any((folder / "manifest.json").is_file() for folder in folders.values()):
        raise UsageError(f"{run}: not the folder of a run{runs_there_are(run)}")
    known = {"name": run.absolute().name}
    earlier = folders.get("report", run) / "report.json"
    if earlier.is_file():
        known = json.loads(earlier.read_bytes())["recipe"]
    report = build_report(gather(folders, known))
    if html is not None:
        way = os.path.relpath(run.absolute(), html.absolute().parent)
        write_atomic(html, to_html(report, Path(way).as_posix()))
    if as_json:
        print_json(report)
    else:
        text = to_markdown(report) if markdown else to_terminal(report)
        click.echo(text, nl=False) if markdown else show_verdict(text)
