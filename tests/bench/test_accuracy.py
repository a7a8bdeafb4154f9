"""Evaluation of a scripted model: what is right, wrong, cut and too long, counted by hand."""

import sys
from typing import Any

import pytest

from edgeft.bench.accuracy import Scoring, evaluate
from edgeft.bench.examples import Example
from edgeft.console import silent_log
from edgeft.errors import MissingExtra, RuntimeFault, UsageError
from tests.bench.fake_model import FakeModel


def example(question: str, answer: str, **fields: object) -> Example:
    return Example(({"role": "user", "content": question},), answer, None, fields)


def test_scores_answers_and_finish() -> None:
    model = FakeModel({"q1": "yes", "q2": "no, never in my life", "q3": "yes"}, n_ctx=40)
    examples = [example("q1", "yes"), example("q2", "no"), example("q3", "no"), example("x" * 50, "yes")]
    result = evaluate(model, examples, Scoring(["exact_match", "json_valid"]), max_new_tokens=8, log=silent_log())
    assert result.values() == {"exact_match": 0.25}
    assert result.not_applicable == ("json_valid",)
    assert [(a.text, a.finish, a.n_prompt, a.n_new) for a in result.answers] == [
        ("yes", "stop", 7, 3),
        ("no, neve", "length", 7, 8),
        ("yes", "stop", 7, 3),
        ("", "prompt_too_long", 55, 0),
    ]
    content = result.to_json()
    assert (content["n"], content["cut_by_length"], content["prompts_too_long"]) == (4, 1, 1)
    assert result.predictions()[2] == {
        "index": 2,
        "text": "yes",
        "finish": "stop",
        "n_prompt": 7,
        "n_new": 3,
        "reference": "no",
        "outcomes": {"exact_match": 0.0},
    }


def test_the_context_window_cuts_as_well() -> None:
    model = FakeModel({"q": "a long answer"}, n_ctx=10)  # 6 tokens of prompt leave 4
    result = evaluate(model, [example("q", "a lo")], Scoring(), max_new_tokens=100, log=silent_log())
    assert (result.answers[0].text, result.answers[0].finish) == ("a lo", "length")


def test_a_prompt_that_fills_the_context_leaves_no_answer() -> None:
    model = FakeModel({"qqqqq": "a"}, n_ctx=10)
    result = evaluate(model, [example("qqqqq", "a")], Scoring(), max_new_tokens=100, log=silent_log())
    assert (result.answers[0].finish, result.answers[0].n_prompt) == ("prompt_too_long", 10)


def test_tools_reach_the_template() -> None:
    model = FakeModel({"q": "a"})
    evaluate(
        model,
        [Example(({"role": "user", "content": "q"},), "a", ({"name": "t"},))],
        Scoring(),
        max_new_tokens=4,
        log=silent_log(),
    )
    assert model.streams[0]["n_prompt"] == len("[1 tools]u:q\na:")


def test_a_fault_of_the_runtime_is_not_a_wrong_answer() -> None:
    with pytest.raises(RuntimeFault, match="no scripted answer"):
        evaluate(FakeModel({}), [example("q", "a")], Scoring(), max_new_tokens=4, log=silent_log())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"metrics": ["bleu"]}, "unknown metric bleu; known: exact_match, .*, ece"),
        ({"metrics": ["json_schema_valid"]}, "json_schema_valid needs bench.json_schema"),
        ({"metrics": ["out_of_scope_recall"]}, "out_of_scope_recall needs bench.out_of_scope"),
        ({"json_schema": {"type": "objekt"}}, r"bench.json_schema: not a JSON schema \(.*objekt"),
        ({"json_schema": {"$ref": "https://example.org/schema.json"}}, "would have to be fetched; write it into"),
    ],
)
def test_what_cannot_be_scored(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Scoring(**keys)


def test_a_schema_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema_rs", None)
    with pytest.raises(MissingExtra, match=r'jsonschema_rs is not installed; pip install "edgeft\[data\]"'):
        Scoring(json_schema={})


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"room": "hall"}', 1),
        ('{"room": "hall", "at": "2026-02-30"}', 1),  # `format` is an annotation by default (2020-12, section 7.2.1)
        ('{"room": 3}', 0),
        ("{}", 0),
        ('{"room": "hall", "x": 1}', 0),
        ('{"room": "hall"} ok', 0),
        ('{"room": "hall", "room": "den"}', 0),
    ],
)
def test_answers_are_held_to_the_schema(text: str, valid: int) -> None:
    schema = {
        "type": "object",
        "properties": {"room": {"$ref": "#/$defs/room"}, "at": {"type": "string", "format": "date"}},
        "required": ["room"],
        "additionalProperties": False,
        "$defs": {"room": {"type": "string"}},
    }
    model = FakeModel({"q": text})
    scoring = Scoring(["json_schema_valid"], json_schema=schema)
    result = evaluate(model, [example("q", "{}")], scoring, max_new_tokens=60, log=silent_log())
    assert result.scores[0].outcomes == (valid,)


def test_abstention_and_slices() -> None:
    model = FakeModel({"q1": '{ "tool":null}', "q2": '{"tool": "light"}', "q3": '{"tool": null}'})
    none = '{"tool": null}'
    examples = [
        example("q1", none, kind="chat"),
        example("q2", none, kind="chat"),
        example("q3", '{"tool": "light"}', kind="light"),
    ]
    scoring = Scoring(["out_of_scope_recall", "json_match"], out_of_scope=none, slice_by=["kind"], slice_minimum=1)
    result = evaluate(model, examples, scoring, max_new_tokens=20, log=silent_log())
    assert result.values() == {"out_of_scope_recall": 0.5, "json_match": pytest.approx(1 / 3)}
    assert result.scores[0].detail == {"threshold": 0.0, "precision": 0.5, "false_abstention": 1.0}
    tables = {table["metric"]: table for table in result.to_json()["slices"]}
    assert [(row["value"], row["score"]) for row in tables["json_match"]["rows"]] == [("light", 0), ("chat", 0.5)]
    assert (tables["json_match"]["gap"]["worst"], tables["json_match"]["gap"]["gap"]) == ("light", 0.5)
