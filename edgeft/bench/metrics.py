"""Task metrics: what the model wrote against what it should have written.

Every metric takes the predictions and the references, two lists of n texts, and gives a Score, or None when
it counts none of the references:

- exact_match      share of predictions equal to the reference, white space at both ends ignored
- json_valid       share of predictions that are a JSON object or array by RFC 8259; NaN and a name used twice
                   in one object are not valid, because parsers disagree about them
- json_match       share of predictions equal to the reference as JSON: order of names and white space do not
                   matter, order in arrays does, 1 equals 1.0, true does not equal 1
- json_field_f1    micro F1 of (path, value) pairs; see `json_values.json_fields`
- label_accuracy   share of predictions equal to the reference label, letter case and outer white space ignored
- macro_f1         mean over the labels in the references of the F1 of that label
- rouge_l          mean F1 of the longest common subsequence of words; see `text_metrics.rouge_l`
- numeric_answer   share of predictions whose final number is the reference's; see `text_metrics.final_number`
- tool_call_match  share of predictions with the calls of the reference: names and arguments, in any order; see
                   `tool_calls.parse_calls`

JSON metrics count the examples whose reference is a JSON object or array, `numeric_answer` those whose reference
has a number; `tool_call_match` counts all once one reference has a call; the others count all.
"""

from collections.abc import Callable, Sequence

import numpy as np

from edgeft.bench.json_values import INVALID, canonical, json_fields, parse_container
from edgeft.bench.scores import Score, mean_score, share_score
from edgeft.bench.statistics import bootstrap_interval
from edgeft.bench.text_metrics import final_number, rouge_l
from edgeft.bench.tool_calls import parse_calls, same_calls
from edgeft.errors import UsageError


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


def _exact_match(predictions: Sequence[str], references: Sequence[str]) -> Score | None:
    pairs = zip(predictions, references, strict=True)
    return share_score("exact_match", [float(p.strip() == r.strip()) for p, r in pairs])


def _json_valid(predictions: Sequence[str], references: Sequence[str]) -> Score | None:
    wanted = [parse_container(text) for text in references]
    return share_score(
        "json_valid",
        [
            None if reference is INVALID else float(parse_container(text) is not INVALID)
            for text, reference in zip(predictions, wanted, strict=True)
        ],
    )


def _json_match(predictions: Sequence[str], references: Sequence[str]) -> Score | None:
    wanted = [parse_container(text) for text in references]
    return share_score(
        "json_match",
        [
            None if reference is INVALID else float(canonical(parse_container(text)) == canonical(reference))
            for text, reference in zip(predictions, wanted, strict=True)
        ],
    )


def _json_field_f1(predictions: Sequence[str], references: Sequence[str]) -> Score | None:
    counts = []  # (hits, predicted fields, reference fields) of each example counted
    outcomes: list[float | None] = []
    for text, reference_text in zip(predictions, references, strict=True):
        reference = parse_container(reference_text)
        if reference is INVALID:
            outcomes.append(None)
            continue
        fields = json_fields(parse_container(text)), json_fields(reference)
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
    return share_score("label_accuracy", _label_outcomes(predictions, references))


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


def _rouge_l(predictions: Sequence[str], references: Sequence[str]) -> Score | None:
    return mean_score("rouge_l", [rouge_l(p, r) for p, r in zip(predictions, references, strict=True)])


def _numeric_answer(predictions: Sequence[str], references: Sequence[str]) -> Score | None:
    outcomes: list[float | None] = []
    for prediction, reference in zip(predictions, references, strict=True):
        wanted = final_number(reference)
        outcomes.append(None if wanted is None else float(final_number(prediction) == wanted))
    return share_score("numeric_answer", outcomes)


def _tool_call_match(predictions: Sequence[str], references: Sequence[str]) -> Score | None:
    wanted = [parse_calls(text) for text in references]
    if not any(wanted):
        return None
    # A reference in plain words asks for no call, which a prediction in plain words gives.
    pairs = zip((parse_calls(text) for text in predictions), wanted, strict=True)
    return share_score("tool_call_match", [float(same_calls(found, calls)) for found, calls in pairs])


_METRICS: dict[str, Callable[[Sequence[str], Sequence[str]], Score | None]] = {
    "exact_match": _exact_match,
    "json_valid": _json_valid,
    "json_match": _json_match,
    "json_field_f1": _json_field_f1,
    "label_accuracy": _label_accuracy,
    "macro_f1": _macro_f1,
    "rouge_l": _rouge_l,
    "numeric_answer": _numeric_answer,
    "tool_call_match": _tool_call_match,
}


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
