"""Stage `gate`: the recipe's budgets against everything measured."""

import json
from pathlib import Path

from edgeft.artifact import Artifact
from edgeft.bench.gate import collect, judge
from edgeft.console import Log
from edgeft.errors import GateFailed
from edgeft.recipe import Recipe
from edgeft.report.terminal import failed_text
from edgeft.stages._json import write_json


def run(recipe: Recipe, inputs: dict[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Write verdict.json. Raises GateFailed, after that, when a budget is broken.

    The pipeline keeps the verdict all the same, lets the report be made and ends with exit code 3.
    """
    verdict = judge(
        recipe.gate,
        collect(
            json.loads(inputs["bench"].file("bench.json").read_bytes()),
            json.loads(inputs["baseline"].file("baseline.json").read_bytes()),
            inputs["parity"].metrics,
        ),
    )
    write_json(out / "verdict.json", verdict.to_json())
    if not verdict.passed:
        raise GateFailed(failed_text(verdict.to_json()))
    return {"passed": 1.0}
