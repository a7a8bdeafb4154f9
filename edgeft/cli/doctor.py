"""`edgeft doctor`: what this machine and this installation can do, and what is broken."""

from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import click

from edgeft.cli._options import json_option, workdir_option
from edgeft.cli._output import print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeft.doctor.finding import Finding

WIDTH = 80


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft doctor`."""

    @click.command(name, help=f"{text} Exit code 1 when something is broken.")
    @workdir_option
    @json_option
    def doctor_command(workdir: Path, as_json: bool) -> None:
        from dataclasses import asdict

        from edgeft import __version__
        from edgeft.doctor.examine import examine, this_world
        from edgeft.doctor.finding import healthy
        from edgeft.errors import ArtifactError

        findings = examine(this_world(workdir))
        if as_json:
            report = {"edgeft": __version__, "healthy": healthy(findings)}
            print_json({**report, "findings": [asdict(finding) for finding in findings]})
        else:
            click.echo("\n".join(_lines(findings)))
        if not healthy(findings):
            broken = [finding.topic for finding in findings if finding.state == "broken"]
            raise ArtifactError(f"broken here: {', '.join(broken)}; the advice stands above")

    return doctor_command


def _lines(findings: "Sequence[Finding]") -> list[str]:
    """A row for each finding, its sentence and advice wrapped."""
    widest = max(len(finding.topic) for finding in findings)
    indent = " " * (widest + 10)
    lines = []
    for finding in findings:
        rows = [row for line in finding.text.splitlines() for row in wrap(line.strip(), WIDTH - len(indent)) or [""]]
        if finding.advice:
            rows += wrap(f"-> {finding.advice}", WIDTH - len(indent))
        first, *rest = rows
        lines += [f"{finding.state:6}  {finding.topic:{widest}}  {first}", *(f"{indent}{row}" for row in rest)]
    return lines
