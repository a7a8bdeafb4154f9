"""Whether a measured file may ship: measurements against budgets, absolute or against a stored baseline."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.artifact import MANIFEST, read_artifact
from edgeft.bench.baseline import Baseline
from edgeft.bench.budgets import DROP, GAIN, Budget, parse_budget
from edgeft.bench.paired import common_outcomes, pair
from edgeft.bench.statistics import bootstrap_interval
from edgeft.errors import ArtifactError, UsageError
from edgeft.runs import runs_there_are

ROUNDING = 1e-12  # 0.95 - 0.94 is a little more than 0.01 in binary; a budget of 0.01 allows it


@dataclass(frozen=True)
class Measured:
    """A measured number in the metric's own unit; `ci95` and `n` where it is a statistic over examples.

    `n_asked` is of how many, where a time limit left some out.
    """

    value: float
    n: int | None = None
    ci95: tuple[float, float] | None = None
    n_asked: int | None = None


@dataclass(frozen=True, kw_only=True)
class Row(Budget):
    """One judged budget; `limit` is the number it came down to and `baseline` the stored value it came from.

    `margin` is the room left in the metric's own unit, negative when the budget is broken; `margin_percent`
    is the same in percent of the limit (None for a limit of 0). All are None when nothing was measured. A row
    `within_noise` is met because these examples cannot tell its drop from one within the limit.
    """

    ok: bool
    measured: float | None = None
    n: int | None = None
    ci95: tuple[float, float] | None = None
    margin: float | None = None
    margin_percent: float | None = None
    baseline: float | None = None
    within_noise: bool = False
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """All budgets judged; passed when every one is met."""

    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Whether every budget is met. Without budgets nothing can fail."""
        return all(row.ok for row in self.rows)

    @property
    def judges_accuracy(self) -> bool:
        """Whether a budget asks for right answers, so that a model without any could not pass."""
        return any(row.asks_for_accuracy for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Content of verdict.json."""
        return {
            "passed": self.passed,
            "judges_accuracy": self.judges_accuracy,
            "rows": [asdict(row) for row in self.rows],
        }


@dataclass(frozen=True)
class Results:
    """What a run measured: everything by metric, the file it is about, the machine it ran on, and, of a run that
    died midway, how it ended."""

    file: str
    measured: dict[str, Measured]
    host: dict[str, Any]
    failure: str = ""


def judge(budgets: Mapping[str, str], measured: Mapping[str, Measured], baseline: Baseline | None = None) -> Verdict:
    """Compare `measured` with the budgets {metric: text}, in the order of the budgets.

    The verdict is about the measured value itself; a note says when the limit lies inside its 95 % interval. Only a
    drop or a gain (`exact_match_drop`), which is a difference of two models on the same examples, is judged by its
    interval: it breaks the budget when all of the interval is beyond the limit, and is within noise when the limit lies
    inside.
    What was not measured, has no samples or is not a number fails, and so does a budget against a baseline that has
    no value to compare with. Raises UsageError as `parse_budget` does and for such a budget without a baseline.
    """
    parsed = [parse_budget(metric, text, measured) for metric, text in budgets.items()]
    return Verdict(tuple(_row(budget, measured.get(budget.metric), baseline) for budget in parsed))


def collect(
    bench: Mapping[str, Any], baseline: Mapping[str, Any] | None, parity: Mapping[str, float] | None
) -> dict[str, Measured]:
    """Everything measured, by metric, from bench.json, baseline.json and the parity stage's metrics.

    `<metric>_drop` is the merged model's value in torch minus the file's value in its runtime, `<metric>_gain` the
    file's value minus that of TF-IDF, both on the same examples; the interval is Newcombe's for paired shares
    (`paired.pair`), or a paired bootstrap where answers can be half right.
    """
    accuracy = bench.get("accuracy") or {"scores": ()}
    scores = {score["metric"]: score for score in accuracy["scores"]}
    n_asked = accuracy["n_asked"] if accuracy.get("scored") is not None else None
    measured = {name: Measured(float(value)) for name, value in bench["metrics"].items()}
    measured |= {name: Measured(s["value"], s["n"], tuple(s["ci95"]), n_asked) for name, s in scores.items()}
    measured |= {name: Measured(float(value)) for name, value in (parity or {}).items()}
    for form, end, sign in (("merged", DROP, 1), ("classical", GAIN, -1)):
        for reference in _scores_of(form, baseline):
            score = scores.get(reference["metric"])
            if score is None:
                continue
            if n_asked is not None and len(reference["outcomes"]) == n_asked:
                difference = _difference_of_some(reference, accuracy, score)
            elif len(score["outcomes"]) == len(reference["outcomes"]):
                difference = _difference(reference, score)
            else:
                continue
            if difference is not None:
                measured[reference["metric"] + end] = _times(difference, sign)
    return measured


def judge_folder(path: Path, budgets: Mapping[str, str], baseline: Path | None = None) -> Verdict:
    """Judge what a run measured: `path` is as for `read_results`, `baseline` a file of `edgeft.bench.baseline`.

    Raises ArtifactError when a file cannot be read, UsageError as `judge`.
    """
    results = read_results(path)
    return judge_results(results, budgets, Baseline.read(baseline, results.host) if baseline else None)


def judge_results(results: Results, budgets: Mapping[str, str], baseline: Baseline | None = None) -> Verdict:
    """`judge`, and no budget is met by a run that died midway. Raises UsageError as `judge`."""
    verdict = judge(budgets, results.measured, baseline)
    if not results.failure:
        return verdict
    note = f"the run died midway: {results.failure}"
    return Verdict(tuple(replace(row, ok=False, note=note) for row in verdict.rows))


def read_results(path: Path) -> Results:
    """What a run measured: `path` is a run's folder (stage folders in it) or one bench.json.

    Drops and parity are read where their stages are beside the bench stage, and what `of_each_file` finds. Raises
    ArtifactError when there is no bench.json or a file cannot be read.
    """
    if not path.exists():
        raise ArtifactError(
            f"{path}: no such file or folder; give a run's folder or the file of `edgeft bench -o`"
            f"{runs_there_are(path)}"
        )
    file = path if path.is_file() else path / "bench" / "bench.json"
    if not file.is_file() and (path / "bench.json").is_file():
        file = path / "bench.json"
    if path.is_dir() and not file.is_file():
        raise ArtifactError(f"{path}: nothing is measured there (no bench/bench.json){runs_there_are(path)}")
    bench, run = _read(file), file.parent.parent
    baseline, parity = run / "baseline" / "baseline.json", run / "parity"
    measured = collect(
        bench,
        _read(baseline) if baseline.is_file() else None,
        read_artifact(parity).metrics if (parity / MANIFEST).is_file() else None,
    )
    each = of_each_file(run / "parity", run / "bench", run / "export")
    host = (bench.get("latency") or {}).get("host", {})
    failure = "" if bench.get("complete", True) else bench.get("failure") or "it does not say how"
    return Results(bench.get("file", file.name), measured | each, host, failure)


def of_each_file(parity: Path, bench: Path, export: Path | None = None) -> dict[str, Measured]:
    """What the folders of these stages, each of which may be missing, say of single forms and files.

    `<form>/<metric>` of every form that parity compared, `<model>/<metric>` of every file measured,
    `<model>/size_bytes` of every file exported.
    """
    measured: dict[str, Measured] = {}
    if (forms := parity / "parity.json").is_file():
        for row in read_json(forms)["rows"]:
            measured |= _named(row["form"], row)
    if (file := bench / "bench.json").is_file():
        others = bench / "others.json"
        for model in (read_json(file), *(read_json(others) if others.is_file() else ())):
            measured |= _named(_model_name(model.get("file", "")), model["metrics"])
    if export is not None and (files := export / "files.json").is_file():
        for entry in read_json(files):
            measured |= _named(_model_name(entry["file"]), {"size_bytes": entry["bytes"]})
    return measured


def _named(model: str, values: Mapping[str, Any]) -> dict[str, Measured]:
    numbers = {name: value for name, value in values.items() if type(value) in (int, float)}
    return {f"{model}/{name}": Measured(float(value)) for name, value in numbers.items()}


def _model_name(file: str) -> str:
    """A GGUF file without its suffix; the folder of an ONNX model."""
    return file.split("/")[0] if "/" in file else Path(file).stem


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_json(path)
    if not isinstance(content, dict) or not content.keys() & {"metrics", "forms"}:
        raise ArtifactError(f"{path}: not a result of edgeft; give a run's folder or its bench.json")
    return content


def read_json(path: Path) -> Any:
    """Content of a result's JSON file. Raises ArtifactError when it cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}); run the stage that makes it") from None
    except ValueError:
        raise ArtifactError(f"{path}: not valid JSON; run the stage that makes it again") from None


def _row(budget: Budget, measured: Measured | None, baseline: Baseline | None) -> Row:
    note = _unusable(measured)
    stored = None
    if budget.factor:
        if baseline is None:
            raise UsageError(f"gate.{budget.metric}: {budget.text!r} needs a baseline; give one with --baseline NAME")
        stored, refusal = baseline.value(budget)
        if stored is None:
            return Row(**asdict(budget), ok=False, note=note or refusal)
        budget = budget.against(stored)
    if measured is None or note:
        return Row(**asdict(budget), ok=False, baseline=stored, note=note)
    value, limit = measured.value, budget.limit
    room = {">": value - limit, "<": limit - value, "=": -abs(value - limit)}[budget.op[0]]
    slack = ROUNDING * max(1.0, abs(limit))
    ok = room > slack if budget.op in (">", "<") else room >= -slack
    noise = _within_noise(budget, measured)
    return Row(
        **asdict(budget),
        ok=ok or noise,
        within_noise=noise,
        measured=value,
        n=measured.n,
        ci95=measured.ci95,
        margin=room,
        margin_percent=100 * room / abs(limit) if limit else None,
        baseline=stored,
        note="; ".join(filter(None, (_noise(measured, limit, ok=ok, within_noise=noise), _incomplete(measured)))),
    )


def _unusable(measured: Measured | None) -> str:
    """Why a measurement cannot be judged; empty when it can."""
    if measured is None:
        return "not measured"
    if measured.n == 0:
        return "measured on zero samples"
    return "" if math.isfinite(measured.value) else f"measured {measured.value}"


def _within_noise(budget: Budget, measured: Measured) -> bool:
    """Whether a difference's interval has the limit inside: these examples cannot say on which side it is."""
    if measured.ci95 is None:
        return False
    low, high = measured.ci95
    if budget.metric.endswith(DROP) and budget.op in ("<", "<="):
        return low <= budget.limit < high
    return budget.metric.endswith(GAIN) and budget.op in (">", ">=") and low < budget.limit <= high


def _noise(measured: Measured, limit: float, *, ok: bool, within_noise: bool) -> str:
    if within_noise:
        side = "above" if not ok else "below" if measured.value < limit else "at"
        return f"within noise: {side} the limit, which lies inside the 95 % interval of {measured.n} paired examples"
    if measured.ci95 is None or not measured.ci95[0] < limit < measured.ci95[1]:
        return ""
    return f"the limit lies inside the 95 % interval of {measured.n} examples"


def _incomplete(measured: Measured) -> str:
    if measured.n_asked is None:
        return ""
    return f"over {measured.n:,} of {measured.n_asked:,} examples: more did not fit the time"


def _scores_of(form: str, baseline: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    forms = baseline["forms"] if baseline else []
    return next((each["scores"] for each in forms if each["form"] == form), [])


def _times(difference: Measured, sign: int) -> Measured:
    """`difference` as it is (1), or of the other from the one (-1)."""
    if sign > 0:
        return difference
    ci95 = difference.ci95 and (-difference.ci95[1], -difference.ci95[0])
    return replace(difference, value=-difference.value, ci95=ci95)


def _difference(reference: Mapping[str, Any], score: Mapping[str, Any]) -> Measured:
    drop = reference["value"] - score["value"]
    if reference["interval"] != "wilson":  # not a mean of outcomes
        return Measured(drop, score["n"])
    return Measured(drop, *_paired_interval(score["metric"], reference["outcomes"], score["outcomes"]))


def _difference_of_some(
    reference: Mapping[str, Any], accuracy: Mapping[str, Any], score: Mapping[str, Any]
) -> Measured | None:
    """The difference over the examples that were scored; None for a metric that is not a mean of outcomes."""
    if reference["interval"] != "wilson":
        return None
    theirs, ours = common_outcomes(({}, reference), (accuracy, score))
    counted = [(a, b) for a, b in zip(theirs, ours, strict=True) if a is not None and b is not None]
    if not counted:
        return None
    drop = sum(a - b for a, b in counted) / len(counted)
    return Measured(drop, *_paired_interval(score["metric"], theirs, ours), accuracy["n_asked"])


def _paired_interval(
    metric: str, a: Sequence[float | None], b: Sequence[float | None]
) -> tuple[int, tuple[float, float]]:
    """How many examples count for both, and the 95 % interval of the mean of a - b over them."""
    paired = pair(metric, a, b)
    if paired is not None:
        return paired.n, paired.ci95
    pairs = zip(a, b, strict=True)
    differences = np.array([x - y for x, y in pairs if x is not None and y is not None], dtype=np.float64)
    return len(differences), bootstrap_interval(len(differences), lambda drawn: float(differences[drawn].mean()))
