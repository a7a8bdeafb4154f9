"""Evaluation of a scripted model: what is right, wrong, cut and too long, counted by hand."""

import pytest

from edgeft.bench.accuracy import Scoring, evaluate
from edgeft.bench.examples import Example
from edgeft.console import silent_log
from edgeft.errors import RuntimeFault
from tests.bench.fake_model import FakeModel


def example(question: str, answer: str, **fields: object) -> Example:
    return Example(({"role": "user", "content": question},), answer, **fields)


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
        [example("q", "a", tools=({"name": "t"},))],
        Scoring(),
        max_new_tokens=4,
        log=silent_log(),
    )
    assert model.streams[0]["n_prompt"] == len("[1 tools]u:q\na:")


def test_a_fault_of_the_runtime_is_not_a_wrong_answer() -> None:
    with pytest.raises(RuntimeFault, match="no scripted answer"):
        evaluate(FakeModel({}), [example("q", "a")], Scoring(), max_new_tokens=4, log=silent_log())
