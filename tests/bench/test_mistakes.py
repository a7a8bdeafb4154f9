"""Mistakes against tables worked out by hand."""

import math
from typing import Any

import pytest

from edgeft.bench.examples import Example
from edgeft.bench.mistakes import MATRIX, WORST, confusion, field_errors, find_mistakes, mixups


def prediction(index: int, reference: str, text: str, **fields: Any) -> dict[str, Any]:
    outcomes = fields.pop("outcomes", {"exact_match": float(reference == text)})
    return {"index": index, "reference": reference, "text": text, "finish": "stop", "outcomes": outcomes} | fields


def test_the_worst_come_first() -> None:
    """Wrong before half-right; of two wrong ones the surer first; then the one further from right."""
    rows = [
        prediction(0, "a", "a", log_prob=-0.1, outcomes={"m": 1.0, "f1": 1.0}),
        prediction(1, "a", "b", log_prob=-2.0, outcomes={"m": 0.0, "f1": 0.2}),
        prediction(2, "a", "c", log_prob=-0.5, outcomes={"m": 0.0, "f1": 0.9}),
        prediction(3, "a", "d", log_prob=-2.0, outcomes={"m": 0.0, "f1": 0.1}),
    ]
    found = find_mistakes(rows, ["m", "f1"], [None] * 4)
    assert (found["metric"], found["n"], found["n_wrong"]) == ("m", 4, 3)
    assert [row["prediction"] for row in found["worst"]] == [2, 3, 1]
    assert found["worst"][0]["confidence"] == pytest.approx(math.exp(-0.5))


@pytest.mark.parametrize(
    ("outcomes", "metrics", "metric"),
    [
        ({"perplexity": 9.0, "exact_match": 0.0}, ["perplexity", "exact_match"], "exact_match"),
        ({"f1": 0.5, "exact_match": 0.0}, ["f1", "exact_match"], "exact_match"),
        ({"f1": 0.5}, ["f1"], "f1"),
        ({"recall": None, "exact_match": 0.0}, ["recall", "exact_match"], "exact_match"),
        ({"perplexity": 9.0}, ["perplexity"], "exact text"),
    ],
)
def test_right_and_wrong_are_by_a_metric_that_knows(outcomes: dict[str, Any], metrics: list[str], metric: str) -> None:
    found = find_mistakes([prediction(0, "a", "b", outcomes=outcomes)], metrics, [None])
    assert (found["metric"], found["n_wrong"]) == (metric, 1)


def test_no_more_than_a_page_and_long_texts_are_cut() -> None:
    rows = [prediction(i, "r" * 9000, "") for i in range(3 * WORST)]
    said = [("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "why")]
    example = Example(tuple({"role": role, "content": text} for role, text in said), "r")
    found = find_mistakes(rows, ["exact_match"], [example] * len(rows), [{"source": "t", "line": 3}] * len(rows))
    assert (len(found["worst"]), found["n_wrong"]) == (WORST, 3 * WORST)
    first = found["worst"][0]
    assert first["prompt"] == "user: q\nassistant: a\nuser: why"
    assert len(first["expected"]) == 600
    assert first["got"] == "(nothing)"


PAIRS = (
    [("on", "on")] * 7 + [("on", "off")] * 2 + [("off", "off")] * 9 + [("off", "of"), ("dim", "dim"), ("dim", "dim")]
)


def test_labels_that_are_taken_for_others() -> None:
    """scikit-learn's confusion_matrix(labels=["dim", "off", "on"]) is [[2,0,0],[0,9,0],[0,2,7]], and one `off` was
    answered with a word that is no label."""
    assert confusion(PAIRS) == {
        "labels": ["dim", "off", "on"], "n_labels": 3, "counts": [[2, 0, 0, 0], [0, 9, 0, 1], [0, 2, 7, 0]],
    }  # fmt: skip
    assert mixups(PAIRS) == [
        {"expected": "on", "got": "off", "n": 2, "share": pytest.approx(2 / 9)},
        {"expected": "off", "got": "of", "n": 1, "share": pytest.approx(0.1)},
    ]


def test_a_matrix_of_many_labels_has_those_with_the_most_mistakes() -> None:
    pairs = [(f"l{i:02}", f"l{i:02}") for i in range(30)] + [("l29", "l03")] * 2
    found = confusion(pairs)
    assert len(found["labels"]) == MATRIX
    assert {"l03", "l29"} <= set(found["labels"])
    assert found["n_labels"] == 30


@pytest.mark.parametrize(
    ("references", "labels"),
    [
        (["on", "off"] * 5, True),
        (["on"] * 9, False),  # one label cannot be taken for another
        ([f"a long story {i}" for i in range(9)], False),  # no answer comes twice
        (["x" * 61, "y"] * 5, False),
        (['{"a": 1}', '{"a": 2}'] * 5, False),
        (["1", "2"] * 5, True),  # numbers are labels, objects are not
    ],
)
def test_what_labels_are(references: list[str], labels: bool) -> None:
    rows = [prediction(i, reference, "?") for i, reference in enumerate(references)]
    found = find_mistakes(rows, ["exact_match"], [None] * len(rows))
    assert (found["confusion"] is not None, bool(found["mixups"])) == (labels, labels)


def test_fields_of_json() -> None:
    call = '[{"name": "f", "arguments": "{\\"x\\": 1}"}]'
    answers = [
        ('{"a": 1, "b": "u"}', '{"b": "v", "a": 1}'),
        ('{"a": 1, "b": "u"}', '{"a": true, "b": "v"}'),  # true is not 1
        ('{"a": 1}', '{"a": 1, "c": null}'),
        ('{"a": 1, "b": "u"}', "no JSON"),
    ]
    rows = {row.pop("field"): row for row in field_errors(answers)}
    assert list(rows) == ["b", "a", "c"]
    assert rows["b"] == {"n": 3, "right": 0, "wrong": 2, "missing": 1, "extra": 0, "example": "u → v (2)"}
    assert rows["a"] == {"n": 4, "right": 2, "wrong": 1, "missing": 1, "extra": 0, "example": "1 → (nothing) (1)"}
    assert rows["c"] == {"n": 0, "right": 0, "wrong": 0, "missing": 0, "extra": 1, "example": "(nothing) → None (1)"}
    tools = {row["field"]: row["right"] for row in field_errors([(call, call.replace("1", "2"))])}
    assert tools == {"[].arguments.x": 0, "[].name": 1}
    assert field_errors([("plain", "text"), ('{"a": 1}', "")]) == []
