"""Whether a measured file may ship: measurements against budgets."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.artifact import MANIFEST, read_artifact
from edgeft.bench.budgets import Budget, parse_budget
from edgeft.bench.statistics import bootstrap_interval
from edgeft.errors import ArtifactError

ROUNDING = 1e-12  # 0.95 - 0.94 is a little more than 0.01 in binary; a budget of 0.01 allows it


@dataclass(frozen=True)
class Measured:
    """A measured number in the metric's own unit; `ci95` and `n` where it is a statistic over examples."""

    value: float
    n: int | None = None
    ci95: tuple[float, float] | None = None


@dataclass(frozen=True)
class Row(Budget):
    """One judged budget.

    `margin` is the room left in the metric's own unit, negative when the budget is broken; `margin_percent`
    is the same in percent of the limit (None for a limit of 0). All are None when nothing was measured.
    """

    ok: bool
    measured: float | None = None
    n: int | None = None
    ci95: tuple[float, float] | None = None
    margin: float | None = None
    margin_percent: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """All budgets judged; passed when every one is met."""

    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Whether every budget is met. Without budgets nothing can fail."""
        return all(row.ok for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Content of verdict.json."""
        return {"passed": self.passed, "rows": [asdict(row) for row in self.rows]}


def judge(budgets: Mapping[str, str], measured: Mapping[str, Measured]) -> Verdict:
    """Compare `measured` with the budgets {metric: text}, in the order of the budgets.

    The verdict is about the measured value itself; a note says when the limit lies inside its 95 % interval.
    A metric that was not measured, or is not a number, fails. Raises UsageError as `parse_budget` does.
    """
    parsed = [parse_budget(metric, text) for metric, text in budgets.items()]
    return Verdict(tuple(_row(budget, measured.get(budget.metric)) for budget in parsed))


def collect(
    bench: Mapping[str, Any], baseline: Mapping[str, Any] | None, parity: Mapping[str, float] | None
) -> dict[str, Measured]:
    """Everything measured, by metric, from bench.json, baseline.json and the parity stage's metrics.

    `<metric>_drop` is the merged model's value in torch minus the file's value in its runtime, both on the
    same examples; its interval is a paired bootstrap over them.
    """
    scores = {score["metric"]: score for score in bench["accuracy"]["scores"]}
    measured = {name: Measured(float(value)) for name, value in bench["metrics"].items()}
    measured |= {name: Measured(s["value"], s["n"], tuple(s["ci95"])) for name, s in scores.items()}
    measured |= {name: Measured(float(value)) for name, value in (parity or {}).items()}
    for reference in _torch_scores(baseline):
        score = scores.get(reference["metric"])
        if score is not None and len(score["outcomes"]) == len(reference["outcomes"]):
            measured[f"{reference['metric']}_drop"] = _drop(reference, score)
    return measured


def judge_folder(path: Path, budgets: Mapping[str, str]) -> Verdict:
    """Judge what a run measured: `path` is a run's folder (stage folders in it) or one bench.json.

    Drops and parity are judged where their stages are beside the bench stage, else they count as not
    measured. Raises ArtifactError when there is no bench.json or it cannot be read, UsageError as `judge`.
    """
    file = path if path.is_file() else path / "bench" / "bench.json"
    if not file.is_file() and (path / "bench.json").is_file():
        file = path / "bench.json"
    run = file.parent.parent
    baseline = run / "baseline" / "baseline.json"
    parity = run / "parity"
    measured = collect(
        _read(file),
        _read(baseline) if baseline.is_file() else None,
        read_artifact(parity).metrics if (parity / MANIFEST).is_file() else None,
    )
    return judge(budgets, measured)


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}); run the stage that makes it") from None
    except ValueError:
        raise ArtifactError(f"{path}: not valid JSON; run the stage that makes it again") from None
    if "metrics" not in content and "forms" not in content:
        raise ArtifactError(f"{path}: not a result of edgeft; give a run's folder or its bench.json")
    return content


def _row(budget: Budget, measured: Measured | None) -> Row:
    if measured is None or not math.isfinite(measured.value):
        note = "not measured" if measured is None else f"measured {measured.value}"
        return Row(**asdict(budget), ok=False, note=note)
    value, limit = measured.value, budget.limit
    room = {">": value - limit, "<": limit - value, "=": -abs(value - limit)}[budget.op[0]]
    slack = ROUNDING * max(1.0, abs(limit))
    return Row(
        **asdict(budget),
        ok=room > slack if budget.op in (">", "<") else room >= -slack,
        measured=value,
        n=measured.n,
        ci95=measured.ci95,
        margin=room,
        margin_percent=100 * room / abs(limit) if limit else None,
        note=_noise(measured, limit),
    )


def _noise(measured: Measured, limit: float) -> str:
    if measured.ci95 is None or not measured.ci95[0] < limit < measured.ci95[1]:
        return ""
    return f"the limit lies inside the 95 % interval of {measured.n} examples"


def _torch_scores(baseline: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    forms = baseline["forms"] if baseline else []
    return next((form["scores"] for form in forms if form["form"] == "merged"), [])


def _drop(reference: Mapping[str, Any], score: Mapping[str, Any]) -> Measured:
    drop = reference["value"] - score["value"]
    if reference["interval"] != "wilson":  # not a mean of outcomes
        return Measured(drop, score["n"])
    pairs = zip(reference["outcomes"], score["outcomes"], strict=True)
    differences = np.array([a - b for a, b in pairs if a is not None], dtype=np.float64)
    interval = bootstrap_interval(len(differences), lambda drawn: float(differences[drawn].mean()))
    return Measured(drop, score["n"], interval)
