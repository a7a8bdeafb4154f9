"""Stage `report`: everything the run found, as a page, JSON, Markdown and terminal text."""

from pathlib import Path

from edgeft.artifact import Artifact
from edgeft.console import Log
from edgeft.recipe import Recipe
from edgeft.report.build import build_report
from edgeft.report.gather import gather
from edgeft.report.html import to_html
from edgeft.report.markdown import to_markdown
from edgeft.report.terminal import to_terminal
from edgeft.stages._json import write_json


def run(recipe: Recipe, inputs: dict[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Write report.html, report.json, report.md and report.txt from the artifacts in `inputs`, as many as there are."""
    known = {
        "name": recipe.name,
        "seed": recipe.seed,
        "base": recipe.base_name,
        "method": recipe.train.method,
        "torch_dtype": recipe.train.torch_dtype,
        "ship": recipe.shipped,
    }
    report = build_report(gather({stage: artifact.path for stage, artifact in inputs.items()}, known))
    write_json(out / "report.json", report)
    (out / "report.html").write_text(to_html(report, ".."), encoding="utf-8")
    (out / "report.md").write_text(to_markdown(report), encoding="utf-8")
    (out / "report.txt").write_text(to_terminal(report), encoding="utf-8")
    return {}
