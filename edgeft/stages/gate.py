"""Stage `gate`: the recipe's budgets against everything measured."""

import json
from pathlib import Path

from edgeft.artifact import Artifact
from edgeft.bench.baseline import Baseline
from edgeft.bench.gate import collect, judge, of_each_file
from edgeft.console import Log
from edgeft.errors import GateFailed
from edgeft.recipe import Recipe
from edgeft.report.terminal import failed_text
from edgeft.stages._json import write_json


def run(recipe: Recipe, inputs: dict[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Write verdict.json. Raises GateFailed, after that, when a budget is broken; ArtifactError when the recipe's
    baseline is none.

    The pipeline keeps the verdict all the same, lets the report be made and ends with exit code 3.
    """
    bench = json.loads(inputs["bench"].file("bench.json").read_bytes())
    untuned = json.loads(inputs["baseline"].file("baseline.json").read_bytes())
    stored = recipe.baseline_file
    against = Baseline.read(stored, bench["latency"]["host"]) if stored else None
    measured = collect(bench, untuned, inputs["parity"].metrics)
    measured |= of_each_file(inputs["parity"].path, inputs["bench"].path)
    verdict = judge(recipe.budgets, measured, against)
    write_json(out / "verdict.json", verdict.to_json())
    if not verdict.passed:
        raise GateFailed(failed_text(verdict.to_json()))
    return {"passed": 1.0}
