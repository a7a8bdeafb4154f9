"""Task metrics against hand-computed values and scikit-learn."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from edgeft.bench.json_values import INVALID, json_fields, parse_json
from edgeft.bench.metrics import known_metrics, score_texts
from edgeft.bench.scores import Score
from edgeft.errors import UsageError

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


def one(metric: str, predictions: list[str], references: list[str]) -> Score:
    (score,) = score_texts([metric], predictions, references)
    return score


@pytest.mark.parametrize(
    ("metric", "prediction", "reference", "outcome"),
    [
        ("exact_match", " on\n", "on", 1),
        ("exact_match", "On", "on", 0),
        ("exact_match", '{"a":1}', '{"a": 1}', 0),
        ("json_valid", '{"a": 1}', "{}", 1),
        ("json_valid", " [1] ", "{}", 1),
        ("json_valid", "1", "{}", 0),
        ("json_valid", '{"a": NaN}', "{}", 0),
        ("json_valid", '{"a": 1, "a": 2}', "{}", 0),
        ("json_valid", '{"a": 1} and more', "{}", 0),
        ("json_valid", "", "{}", 0),
        ("json_match", '{"b":[1,2],"a":1.0}', '{"a": 1, "b": [1, 2]}', 1),
        ("json_match", '{"b":[2,1],"a":1}', '{"a": 1, "b": [1, 2]}', 0),
        ("json_match", '{"a": true}', '{"a": 1}', 0),
        ("json_match", '{"a": "1"}', '{"a": 1}', 0),
        ("json_match", '{"a": null}', "{}", 0),
        ("json_match", '{"a": {}}', '{"a": []}', 0),
    ],
)
def test_outcome_of_one_pair(metric: str, prediction: str, reference: str, outcome: int) -> None:
    assert one(metric, [prediction], [reference]).outcomes == (outcome,)


def test_json_match_is_equality_after_canonical_serialization() -> None:
    # Oracle: Python's own canonical form, sorted names and no white space.
    generator = random.Random(3)
    values = [
        {"b": [generator.randint(0, 1) for _ in range(2)], "a": {"c": "x" * generator.randint(0, 1)}} for _ in range(60)
    ]
    references = [json.dumps(value) for value in values]
    predictions = [json.dumps(value, sort_keys=True, indent=1) for value in reversed(values)]
    canonical = [
        [json.dumps(json.loads(text), sort_keys=True) for text in texts] for texts in (predictions, references)
    ]
    expected = [int(p == r) for p, r in zip(*canonical, strict=True)]
    assert list(one("json_match", predictions, references).outcomes) == expected
    assert 0 < sum(expected) < 60


def test_fields_of_a_nested_value() -> None:
    value = {"tool": "timer", "at": {"h": 7}, "tags": ["a", "a"], "none": [], "x.y": None}
    assert json_fields(value) == {
        ("tool", ("string", "timer")): 1,
        ("at.h", ("number", 7)): 1,
        ("tags[]", ("string", "a")): 2,
        ("none", ("empty", "list")): 1,
        ('"x.y"', ("constant", "None")): 1,
    }


def test_field_f1_by_hand() -> None:
    references = [
        '{"tool": "lights", "room": "hall", "on": true}',
        '{"tool": null}',
        '{"items": ["milk", "eggs"]}',
    ]
    predictions = ['{"tool": "lights", "room": "den"}', "nonsense", '{"items": ["eggs", "milk"]}']
    # hits 1 + 0 + 2 = 3 (arrays are order-free); predicted 2 + 0 + 2 = 4; wanted 3 + 1 + 2 = 6
    score = one("json_field_f1", predictions, references)
    assert score.value == pytest.approx(2 * 3 / (4 + 6))
    assert score.detail == pytest.approx(
        {"precision": 3 / 4, "recall": 3 / 6, "example_mean": (2 * 1 / (2 + 3) + 0 + 1) / 3}
    )
    assert score.outcomes == pytest.approx((0.4, 0.0, 1.0))
    assert score.ci95[0] <= score.value <= score.ci95[1]


def test_json_metrics_count_only_json_references() -> None:
    score = one("json_valid", ["{}", "no", "no"], ["{}", "[]", "plain words"])
    assert (score.value, score.n, score.outcomes) == (0.5, 2, (1.0, 0.0, None))
    assert score.to_json()["outcomes"] == [1, 0, None]


@pytest.mark.parametrize("seed", range(3))
def test_label_metrics_equal_scikit_learn(seed: int) -> None:
    generator = random.Random(seed)
    references = [generator.choice("abcde") for _ in range(80)]
    predictions = [generator.choice([r, r, "a", "not a label"]) for r in references]
    labels = sorted(set(references))
    expected = f1_score(references, predictions, labels=labels, average="macro", zero_division=0)
    macro = one("macro_f1", predictions, references)
    assert macro.value == pytest.approx(expected)
    assert macro.ci95[0] < expected < macro.ci95[1]
    accuracy = one("label_accuracy", [p.upper() + "\n" for p in predictions], references)
    assert accuracy.value == pytest.approx(accuracy_score(references, predictions))


@pytest.mark.parametrize(
    ("metric", "references"),
    [
        ("json_valid", ["on", "off"]),
        ("json_match", ["on", "off"]),
        ("json_field_f1", ["1", "null"]),
    ],
)
def test_a_json_metric_without_json_references_is_left_out(metric: str, references: list[str]) -> None:
    assert score_texts([metric, "exact_match"], references, references)[0].metric == "exact_match"


def test_unknown_metric() -> None:
    with pytest.raises(UsageError, match="unknown metric bleu; known: exact_match, json_valid"):
        score_texts(["bleu"], ["a"], ["a"])


@settings(deadline=None, max_examples=40)
@given(JSON_VALUES)
def test_every_value_matches_itself(value: object) -> None:
    text = json.dumps({"value": value})
    for metric in ("exact_match", "json_valid", "json_match", "json_field_f1"):
        assert one(metric, [text], [text]).value == 1


@settings(deadline=None, max_examples=40)
@given(st.text())
def test_any_text_is_a_prediction(text: str) -> None:
    scores = score_texts(known_metrics(), [text], ['{"a": 1}'])
    assert all(0 <= score.value <= 1 for score in scores)


@pytest.mark.parametrize("depth", [101, 5000, 200_000])
def test_deep_nesting_is_invalid_and_harmless(depth: int) -> None:
    assert parse_json("[" * depth + "]" * depth) is INVALID
