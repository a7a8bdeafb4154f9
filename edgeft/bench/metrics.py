"""Task metrics: what the model wrote against what it should have written.

Every metric takes the predictions and the references, two lists of n texts, and gives a Score, or None when
it counts none of the references:

- exact_match     share of predictions equal to the reference, white space at both ends ignored
- json_valid      share of predictions that are a JSON object or array by RFC 8259; NaN and a name used twice
                  in one object are not valid, because parsers disagree about them
- json_match      share of predictions equal to the reference as JSON: order of names and white space do not
                  matter, order in arrays does, 1 equals 1.0, true does not equal 1
- json_field_f1   micro F1 of (path, value) pairs; see `json_fields`
- label_accuracy  share of predictions equal to the reference label, letter case and outer white space ignored
- macro_f1        mean over the labels in the references of the F1 of that label

JSON metrics count the examples whose reference is a JSON object or array, the others count all.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeft.bench.statistics import bootstrap_interval, wilson_interval
from edgeft.errors import UsageError

INVALID = object()  # stands for a text that is no JSON; None is a JSON value
MAX_DEPTH = 100


@dataclass(frozen=True)
class Score:
    """One metric over one set of examples.

    `value` and `ci95` are in 0..1; `interval` names the method of `ci95`; `outcomes` has one number in 0..1
    for each example, None for one the metric does not count; `n` is the number counted; `detail` holds
    numbers that explain the value.
    """

    metric: str
    value: float
    n: int
    ci95: tuple[float, float]
    interval: str
    outcomes: tuple[float | None, ...]
    detail: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return {
            "metric": self.metric,
            "value": self.value,
            "n": self.n,
            "ci95": list(self.ci95),
            "interval": self.interval,
            "detail": self.detail,
            "outcomes": [int(o) if o in (0, 1) and o is not None else o for o in self.outcomes],
        }


def score_texts(metrics: Sequence[str], predictions: Sequence[str], references: Sequence[str]) -> list[Score]:
    """The Scores of those `metrics` that apply to `references`, in the order asked for.

    Raises UsageError when a metric is not known.
    """
    scores = []
    for name in metrics:
        if name not in _METRICS:
            raise UsageError(f"unknown metric {name}; known: {', '.join(_METRICS)}")
        score = _METRICS[name](predictions, references)
        if score is not None:
            scores.append(score)
    return scores


def known_metrics() -> tuple[str, ...]:
    """Names of all task metrics."""
    return tuple(_METRICS)


def parse_json(text: str) -> Any:
    """The JSON value in `text` by RFC 8259, or INVALID.

    Also invalid, as section 9 and 4 of the RFC let a parser say: more than MAX_DEPTH levels, a name used
    twice in one object.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique_names, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return INVALID
    return INVALID if _deeper_than(value, MAX_DEPTH) else value


def json_fields(value: Any) -> Counter[tuple[str, tuple[str, Any]]]:
    """The leaves of a JSON value as a multiset of (path, (type, value)).

    {"a": {"b": 1}, "c": [2, 3]} has the leaves a.b = 1, c[] = 2 and c[] = 3: elements of arrays carry no
    index, so the order in arrays is free (and fields of objects inside an array are not tied to each other;
    json_match is the strict metric). An empty object or array is a leaf itself. Numbers are equal when their
    values are, texts when every character is.
    """
    return Counter(_leaves(value, ""))


def _exact_match(predictions: Sequence[str], references: Sequence[str]) -> Score | None:
    pairs = zip(predictions, references, strict=True)
    return _share("exact_match", [float(p.strip() == r.strip()) for p, r in pairs])


def _json_valid(predictions: Sequence[str], references: Sequence[str]) -> Score | None:
    wanted = [_container(text) for text in references]
    return _share(
        "json_valid",
        [
            None if reference is INVALID else float(_container(text) is not INVALID)
            for text, reference in zip(predictions, wanted, strict=True)
        ],
    )


def _json_match(predictions: Sequence[str], references: Sequence[str]) -> Score | None:
    wanted = [_container(text) for text in references]
    return _share(
        "json_match",
        [
            None if reference is INVALID else float(_canonical(_container(text)) == _canonical(reference))
            for text, reference in zip(predictions, wanted, strict=True)
        ],
    )


def _json_field_f1(predictions: Sequence[str], references: Sequence[str]) -> Score | None:
    counts = []  # (hits, predicted fields, reference fields) of each example counted
    outcomes: list[float | None] = []
    for text, reference_text in zip(predictions, references, strict=True):
        reference = _container(reference_text)
        if reference is INVALID:
            outcomes.append(None)
            continue
        fields = json_fields(_container(text)), json_fields(reference)
        row = [(fields[0] & fields[1]).total(), fields[0].total(), fields[1].total()]
        counts.append(row)
        outcomes.append(_micro_f1(np.array([row])))
    if not counts:
        return None
    table = np.array(counts, dtype=np.float64)
    hits, found, wanted = (float(total) for total in table.sum(axis=0))
    return Score(
        metric="json_field_f1",
        value=_micro_f1(table),
        n=len(counts),
        ci95=bootstrap_interval(len(table), lambda drawn: _micro_f1(table[drawn])),
        interval="bootstrap",
        outcomes=tuple(outcomes),
        detail={
            "precision": hits / found if found else 0.0,
            "recall": hits / wanted,
            "example_mean": float(np.mean([o for o in outcomes if o is not None])),
        },
    )


def _label_accuracy(predictions: Sequence[str], references: Sequence[str]) -> Score | None:
    return _share("label_accuracy", _label_outcomes(predictions, references))


def _macro_f1(predictions: Sequence[str], references: Sequence[str]) -> Score | None:
    labels = sorted({_label(text) for text in references})
    index = {label: position for position, label in enumerate(labels)}
    wanted = np.array([index[_label(text)] for text in references])
    # A text that is no label is a miss, but no false alarm of any label: it goes to a place of its own.
    found = np.array([index.get(_label(text), len(labels)) for text in predictions])
    return Score(
        metric="macro_f1",
        value=_mean_f1(found, wanted, len(labels)),
        n=len(references),
        ci95=bootstrap_interval(len(references), lambda drawn: _mean_f1(found[drawn], wanted[drawn], len(labels))),
        interval="bootstrap",
        outcomes=tuple(_label_outcomes(predictions, references)),
        detail={"labels": len(labels)},
    )


_METRICS: dict[str, Callable[[Sequence[str], Sequence[str]], Score | None]] = {
    "exact_match": _exact_match,
    "json_valid": _json_valid,
    "json_match": _json_match,
    "json_field_f1": _json_field_f1,
    "label_accuracy": _label_accuracy,
    "macro_f1": _macro_f1,
}


def _share(metric: str, outcomes: list[float | None]) -> Score | None:
    counted = [outcome for outcome in outcomes if outcome is not None]
    if not counted:
        return None
    hits, n = sum(counted), len(counted)
    return Score(metric, hits / n, n, wilson_interval(hits, n), "wilson", tuple(outcomes))


def _micro_f1(counts: np.ndarray) -> float:
    """F1 from rows (n, 3) of hits, predicted and wanted fields: 2 hits / (predicted + wanted)."""
    hits, found, wanted = counts.sum(axis=0)
    return float(2 * hits / (found + wanted))


def _mean_f1(found: np.ndarray, wanted: np.ndarray, n_labels: int) -> float:
    """Macro F1 of label indices (n,); a label that is never wanted is left out of the mean."""
    n_found = np.bincount(found, minlength=n_labels)[:n_labels]
    n_wanted = np.bincount(wanted, minlength=n_labels)
    hits = np.bincount(wanted[found == wanted], minlength=n_labels)
    present = n_wanted > 0
    return float(np.mean(2 * hits[present] / (n_found + n_wanted)[present]))


def _label_outcomes(predictions: Sequence[str], references: Sequence[str]) -> list[float | None]:
    return [float(_label(p) == _label(r)) for p, r in zip(predictions, references, strict=True)]


def _label(text: str) -> str:
    return text.strip().casefold()


def _container(text: str) -> Any:
    value = parse_json(text)
    return value if isinstance(value, dict | list) else INVALID


def _deeper_than(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        groups = (item.values() if isinstance(item, dict) else item for item in _containers(level))
        level = [child for group in groups for child in group]
    return bool(_containers(level))


def _containers(values: list[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, dict | list)]


def _canonical(value: Any) -> Any:
    """A form in which equality is equality as JSON: true is not 1, order of names is lost."""
    if isinstance(value, dict):
        return ("object", frozenset((name, _canonical(child)) for name, child in value.items()))
    if isinstance(value, list):
        return ("array", tuple(_canonical(child) for child in value))
    return _typed(value)


def _leaves(value: Any, path: str) -> list[tuple[str, tuple[str, Any]]]:
    if value is INVALID:
        return []
    if isinstance(value, dict) and value:
        # A name is quoted when a dot or bracket in it could be taken for structure.
        steps = [(json.dumps(name) if set(name) & set('.[]"') else name, child) for name, child in value.items()]
        return [leaf for name, child in steps for leaf in _leaves(child, f"{path}.{name}" if path else name)]
    if isinstance(value, list) and value:
        return [leaf for child in value for leaf in _leaves(child, f"{path}[]")]
    return [(path, _typed(value))]


def _typed(value: Any) -> tuple[str, Any]:
    if isinstance(value, bool) or value is None:
        return ("constant", str(value))
    if isinstance(value, int | float):
        return ("number", value)
    if isinstance(value, dict | list):
        return ("empty", type(value).__name__)
    return ("string", value)


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("a name is used twice in one object")
    return names


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
