"""Tool calls in the forms that templates and models write, as values."""

import json

import pytest

from edgeft.bench.metrics import score_texts
from edgeft.bench.tool_calls import calls_text, parse_calls, same_calls

A = '{"name": "light", "arguments": {"room": "hall", "on": true}}'
B = '{"name": "timer", "arguments": {"minutes": 5}}'
BOTH = f"[{A}, {B}]"


@pytest.mark.parametrize(
    "text",
    [
        f"[{B}, {A}]",
        '[{"arguments": {"on": true, "room": "hall"}, "name": "light"}, {"name":"timer","arguments":{"minutes":5.0}}]',
        f"<tool_call>\n{A}\n</tool_call>\n<tool_call>\n{B}\n</tool_call>",
        f"I will do both.\n<tool_call>{B}</tool_call> <tool_call>{A}",  # the end tag is often a stop token
        f"[TOOL_CALLS] {BOTH}",
        '[TOOL_CALLS]timer{"minutes": 5}[TOOL_CALLS]light[ARGS]{"room": "hall", "on": true}',
        f"<|python_tag|>{BOTH}",
        BOTH.replace("arguments", "parameters"),
        BOTH.replace('"name"', '"tool"').replace("arguments", "args"),
        '[{"type": "function", "id": "1", "function": {"name": "light", "arguments": "{\\"room\\": \\"hall\\", '
        f'\\"on\\": true}}"}}}}, {B}]',
        '[{"tool": "light", "room": "hall", "on": true}, {"tool": "timer", "minutes": 5}]',
    ],
)
def test_one_answer_in_every_form(text: str) -> None:
    assert same_calls(parse_calls(text), parse_calls(BOTH))


@pytest.mark.parametrize(
    "text",
    [
        A,  # one of two
        f"[{A}, {B}, {B}]",  # once too often
        BOTH.replace("5", '"5"'),
        BOTH.replace("true", "1"),
        BOTH.replace("light", "Light"),
        BOTH.replace('"room": "hall", ', ""),
        "I turned it on.",
        "[]",
        "",
        f"<tool_call>{A}</tool_call><tool_call>{{oops</tool_call>",
        f"{BOTH} and more",
        "[TOOL_CALLS] oops",
        "<|python_tag|>print(1)",
    ],
)
def test_other_answers_are_wrong(text: str) -> None:
    assert not same_calls(parse_calls(text), parse_calls(BOTH))


@pytest.mark.parametrize("text", ["Hello!", '{"tool": null}', "", "[1, 2]", '{"answer": 3}'])
def test_no_call_is_the_answer_where_none_is_wanted(text: str) -> None:
    assert same_calls(parse_calls(text), parse_calls('{"tool": null}'))
    assert not same_calls(parse_calls(text), parse_calls(A))
    assert not same_calls(parse_calls(A), parse_calls(text))


def test_a_call_that_cannot_be_read_is_never_right() -> None:
    broken = parse_calls("<tool_call>{oops</tool_call>")
    assert not same_calls(broken, broken)


def test_arguments_are_optional() -> None:
    assert parse_calls('{"name": "stop"}') == parse_calls('{"name": "stop", "arguments": {}}')
    assert parse_calls('{"name": "stop", "arguments": ""}') == parse_calls('{"name": "stop", "arguments": null}')


def test_calls_of_a_message_come_back() -> None:
    calls = [{"type": "function", "function": {"name": "timer", "arguments": json.dumps({"minutes": 5})}}]
    assert same_calls(parse_calls(calls_text(calls)), parse_calls(B))
    assert same_calls(parse_calls(calls_text([{"name": "timer", "arguments": {"minutes": 5}}])), parse_calls(B))


def test_the_metric() -> None:
    references = [A, B, "How can I help?", BOTH]
    predictions = [A, A, A, f"<tool_call>{B}</tool_call><tool_call>{A}</tool_call>"]
    (score,) = score_texts(["tool_call_match"], predictions, references)
    assert (score.value, score.outcomes) == (0.5, (1, 0, 0, 1))
    assert score_texts(["tool_call_match"], ["yes"], ["no calls anywhere"]) == []
