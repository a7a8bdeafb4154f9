"""Accuracy by part of the test set: which examples a good average hides.

A slice holds the examples with the same value of one field of the example (`label`, `source`, ...; `answer` is the
reference). Its value is the mean outcome of its examples, so metrics that are not such a mean have no slices.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeft.bench.examples import Example
from edgeft.bench.scores import Score, mean_score, share_score
from edgeft.bench.shares import difference_interval
from edgeft.errors import DataError

MINIMUM = 10
ABSENT = "(none)"
PERMUTATIONS = 1000
NOT_MEANS = ("macro_f1", "perplexity", "ece")


def slice_tables(
    examples: Sequence[Example], scores: Sequence[Score], fields: Sequence[str], *, minimum: int = MINIMUM
) -> list[dict[str, Any]]:
    """One table for each field and metric: `field`, `metric`, `rows` (worst first) and the `gap`, see `_gap`.

    A row is `value`, its `n`, `score` and `ci95` (Wilson for shares, bootstrap for means), and `small` where n is below
    `minimum`: shown, but neither best nor worst.
    """
    tables = []
    for field in fields:
        values = [_value(example, field) for example in examples]
        for score in scores:
            if score.metric not in NOT_MEANS:
                tables.append({"field": field, "metric": score.metric, **_table(values, score.outcomes, minimum)})
    return tables


def check_fields(examples: Sequence[Example], fields: Sequence[str]) -> None:
    """Raises DataError for a field that none of the examples has."""
    for field in fields:
        if examples and all(_value(example, field) == ABSENT for example in examples):
            known = ", ".join(["answer", *sorted({name for example in examples for name in example.fields})])
            raise DataError(f"bench.slice_by: no example has a field {field!r}; fields: {known}")


def _table(values: Sequence[str], outcomes: Sequence[float | None], minimum: int) -> dict[str, Any]:
    inside: dict[str, list[float]] = {}
    for value, outcome in zip(values, outcomes, strict=True):
        if outcome is not None:
            inside.setdefault(value, []).append(outcome)
    binary = all(outcome in (0, 1) for group in inside.values() for outcome in group)
    rows = [_row(value, group, binary, minimum) for value, group in inside.items()]
    rows.sort(key=lambda row: (row["score"], row["value"]))
    return {"minimum": minimum, "rows": rows, "gap": _gap([row for row in rows if not row["small"]], inside)}


def _row(value: str, outcomes: list[float], binary: bool, minimum: int) -> dict[str, Any]:
    score = (share_score if binary else mean_score)(value, outcomes)
    assert score is not None
    return {
        "value": value, "n": score.n, "score": score.value, "ci95": list(score.ci95), "small": score.n < minimum
    }  # fmt: skip


def _gap(rows: Sequence[Mapping[str, Any]], inside: Mapping[str, list[float]]) -> dict[str, Any] | None:
    """`best` minus `worst` of the rows large enough, with the interval of that difference; None for fewer than two.

    Best and worst are picked after looking, so the interval alone would find gaps in noise: `p` is how often the gap is
    as large when the outcomes are dealt to the slices at random (permutation test, 1,000 deals).
    """
    if len(rows) < 2:
        return None
    worst, best = rows[0], rows[-1]
    interval = difference_interval(best["score"], best["ci95"], worst["score"], worst["ci95"])
    sizes = [row["n"] for row in rows]
    dealt = np.concatenate([inside[row["value"]] for row in rows])
    places = np.repeat(np.arange(len(rows)), sizes)
    observed = best["score"] - worst["score"]
    generator = np.random.default_rng(0)
    as_large = 0
    for _ in range(PERMUTATIONS):
        means = np.bincount(places, weights=generator.permutation(dealt)) / sizes
        as_large += bool(np.ptp(means) >= observed - 1e-12)
    return {
        "best": best["value"],
        "worst": worst["value"],
        "gap": observed,
        "ci95": list(interval),
        "p": (1 + as_large) / (1 + PERMUTATIONS),
    }


def _value(example: Example, field: str) -> str:
    value = example.answer.strip() if field == "answer" else example.fields.get(field)
    if value is None:
        return ABSENT
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
