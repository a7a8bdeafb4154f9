"""What a model gets wrong: its worst answers, which labels it takes for which, and which fields of its JSON are wrong.

Works on what the bench stage wrote (predictions.jsonl) and the test set, so nothing is run again.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from edgeft.bench.examples import Example
from edgeft.bench.json_values import INVALID, json_fields, parse_container, parse_json

WORST = 20
SHOWN_CHARACTERS = 600
"""Longest text of a prompt or an answer that is shown; a longer one is cut."""
MIXUPS = 20
LABELS, MATRIX = 200, 12
"""A test set of more different answers has no labels; rows of the matrix, the labels with the most mistakes."""
LABEL_CHARACTERS, EXAMPLES_PER_LABEL = 60, 1.5
"""Longest label, and the least examples a label has on average: free text has hardly two equal answers."""
FIELDS = 40
NOTHING = "(nothing)"
Prediction = Mapping[str, Any]


def find_mistakes(
    predictions: Sequence[Prediction],
    metrics: Sequence[str],
    examples: Sequence[Example | None],
    places: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """`metric` (what right and wrong mean here), `n`, `n_wrong`, the `worst` answers, `mixups`, `confusion`, `fields`.

    `predictions` are as `Evaluation.predictions` makes them, `metrics` the names of their outcomes, most important
    first. `examples` (None where one is not known) and `places` ({"source", "line"} of each) go with them. Parts that
    do not apply are empty or None: `confusion` needs labels, `fields` JSON objects.
    """
    metric = _right_or_wrong(predictions, metrics)
    outcomes = [_outcome(row, metric) for row in predictions]
    wrong = [index for index, outcome in enumerate(outcomes) if outcome < 1]
    others = [name for name in metrics if name != metric]
    wrong.sort(key=lambda index: _badness(predictions[index], outcomes[index], others))
    answers = [(str(row["reference"]).strip(), str(row["text"]).strip()) for row in predictions]
    is_label = _are_labels([reference for reference, _ in answers])
    return {
        "metric": metric or "exact text",
        "n": len(predictions),
        "n_wrong": len(wrong),
        "worst": [
            _shown(predictions[index], outcomes[index], examples[index], places[index] if places else {})
            for index in wrong[:WORST]
        ],
        "mixups": mixups(answers) if is_label else [],
        "confusion": confusion(answers) if is_label else None,
        "fields": field_errors(answers),
    }


def mixups(answers: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Which label was answered in place of which, most often first; `share` is of the examples of the right label."""
    n = Counter(reference for reference, _ in answers)
    wrong = Counter(pair for pair in answers if pair[0] != pair[1])
    ordered = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))
    return [
        {"expected": reference, "got": _cut(got) or NOTHING, "n": times, "share": times / n[reference]}
        for (reference, got), times in ordered[:MIXUPS]
    ]


def confusion(answers: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The confusion matrix: `labels` (K), `counts` (K rows of expected, K + 1 columns of answers, the last for any
    other answer) and `n_labels`, of which the K with the most mistakes are here. In the order of the alphabet."""
    known = sorted({reference for reference, _ in answers})
    errors: Counter[str] = Counter()
    for reference, got in answers:
        if reference != got:
            errors.update({reference, got} & set(known))
    most = sorted(known, key=lambda label: (-errors[label], label))[:MATRIX]
    labels = [label for label in known if label in most]
    place = {label: at for at, label in enumerate(labels)}
    counts = [[0] * (len(labels) + 1) for _ in labels]
    for reference, got in answers:
        if reference in place:
            counts[place[reference]][place.get(got, len(labels))] += 1
    return {"labels": labels, "counts": counts, "n_labels": len(known)}


def field_errors(answers: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """By field of the expected JSON objects, worst first: in how many answers (`n`) it was to be, and in how many it
    was `right`, had a `wrong` value, was `missing`, or was there unasked (`extra`); `example` is the most frequent
    mistake. Answers that are no JSON miss every field. Empty where most references are no JSON objects."""
    values = [(_value(reference), _value(got)) for reference, got in answers]
    if sum(isinstance(reference, dict | list) for reference, _ in values) * 2 <= len(values):
        return []
    rows: dict[str, Counter[str]] = {}
    mistakes: dict[str, Counter[str]] = {}
    for reference, got in values:
        wanted, found = _by_path(reference), _by_path(got)
        for path in wanted.keys() | found.keys():
            kind = _kind(wanted.get(path), found.get(path))
            rows.setdefault(path, Counter()).update({kind: 1, "n": path in wanted})
            if kind != "right":
                said = f"{_texts(wanted.get(path))} → {_texts(found.get(path))}"
                mistakes.setdefault(path, Counter())[said] += 1
    found_rows: list[dict[str, Any]] = [
        {
            "field": path or "(the whole answer)",
            **{key: row[key] for key in ("n", "right", "wrong", "missing", "extra")},
            "example": _most(mistakes.get(path)),
        }
        for path, row in rows.items()
    ]
    found_rows.sort(key=lambda row: (-(row["wrong"] + row["missing"] + row["extra"]), row["field"]))
    return found_rows[:FIELDS]


def _right_or_wrong(predictions: Sequence[Prediction], metrics: Sequence[str]) -> str | None:
    """The first metric that says of each answer that it is right or wrong, else the first whose best is 1."""
    for allowed in (lambda outcome: outcome in (0, 1), lambda outcome: 0 <= outcome <= 1):
        for name in metrics:
            found = [row["outcomes"].get(name) for row in predictions]
            if found and None not in found and all(map(allowed, found)):
                return name
    return None


def _outcome(row: Prediction, metric: str | None) -> float:
    if metric is None:
        return float(str(row["text"]).strip() == str(row["reference"]).strip())
    return float(row["outcomes"][metric])


def _badness(row: Prediction, outcome: float, others: Sequence[str]) -> tuple[float, ...]:
    """Smallest first: wrong, sure of it, and far from right by the other metrics."""
    rest = [value for name in others if (value := row["outcomes"].get(name)) is not None and 0 <= value <= 1]
    return outcome, -(row.get("log_prob") or 0.0), sum(rest)


def _shown(row: Prediction, outcome: float, example: Example | None, place: Mapping[str, Any]) -> dict[str, Any]:
    log_prob = row.get("log_prob")
    return {
        "prompt": _cut(_prompt(example)),
        "expected": _cut(str(row["reference"])),
        "got": _cut(str(row["text"])) or NOTHING,
        "score": outcome,
        "confidence": None if log_prob is None else math.exp(log_prob),
        "finish": row.get("finish", "stop"),
        "source": place.get("source"),
        "line": place.get("line"),
        "prediction": row["index"],
    }


def _prompt(example: Example | None) -> str:
    """What was asked: the user's words where they are all there is, else every turn but the system's, by its role."""
    if example is None:
        return ""
    turns = [turn for turn in example.prompt if turn["role"] not in ("system", "developer")]
    if len(turns) == 1:
        return str(turns[0].get("content", ""))
    return "\n".join(f"{turn['role']}: {turn.get('content') or json.dumps(turn.get('tool_calls'))}" for turn in turns)


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"


def _are_labels(references: Sequence[str]) -> bool:
    """Whether the answers are a few short words that come again, and no JSON."""
    known = set(references)
    short = all(0 < len(label) <= LABEL_CHARACTERS and "\n" not in label for label in known)
    plain = all(parse_container(label) is INVALID for label in known)
    again = len(references) >= EXAMPLES_PER_LABEL * len(known)
    return short and plain and again and 2 <= len(known) <= LABELS


def _value(text: str) -> Any:
    """The JSON in `text`, with arguments of tool calls that are JSON texts as values; INVALID where it is none."""
    return _decoded(parse_container(text))


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(each) for each in value]
    if not isinstance(value, dict):
        return value
    given = value.get("arguments")
    if isinstance(given, str) and isinstance(read := parse_json(given), dict):
        value = {**value, "arguments": read}
    return {name: _decoded(each) for name, each in value.items()}


def _by_path(value: Any) -> dict[str, Counter[Any]]:
    found: dict[str, Counter[Any]] = {}
    for (path, leaf), times in json_fields(value).items():
        found.setdefault(path, Counter())[leaf] += times
    return found


def _kind(wanted: Counter[Any] | None, found: Counter[Any] | None) -> str:
    if wanted is None:
        return "extra"
    return "missing" if found is None else "right" if wanted == found else "wrong"


def _texts(leaves: Counter[Any] | None) -> str:
    """The values of a field as they are read, cut where they are long."""
    if leaves is None:
        return NOTHING
    text = ", ".join(str(value) for _, value in sorted(leaves.elements(), key=str))
    return text if len(text) <= LABEL_CHARACTERS else f"{text[: LABEL_CHARACTERS - 1]}…"


def _most(said: Counter[str] | None) -> str:
    if not said:
        return ""
    text, times = min(said.items(), key=lambda item: (-item[1], item[0]))
    return f"{text} ({times})"
