"""Older and packed forms of tool data become the one form; what is in it stays as it is."""

import copy
import json
from typing import Any

import pytest

from edgeft.conversation.canonical import (
    canonical_messages,
    canonical_row,
    canonical_tools,
    decode_arguments,
    is_older,
    padded_place,
    undecodable,
)

SCHEMA = {
    "type": "object",
    "properties": {"room": {"type": "string"}, "level": {"type": ["integer", "null"]}, "note": {"type": "string"}},
    "required": ["room"],
}
LIGHT = {"type": "function", "function": {"name": "light", "description": "On or off.", "parameters": SCHEMA}}
USER, OLDER = {"role": "user", "content": "lamp on"}, {"name": "light", "arguments": '{"room": "hall"}'}


def called(arguments: Any, **more: Any) -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": "light", "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call], **more}


NEWER = {
    "messages": [USER, called('{"room": "hall"}'), {"role": "tool", "tool_call_id": "c1", "content": "ok"}],
    "tools": [LIGHT],
    "weight": None,
}


@pytest.mark.parametrize(
    "row",
    [NEWER, {"messages": [USER]}, {"messages": "x", "tools": 3}, {"messages": [1, None, []]}, {"messages": []}, {}],
)
def test_the_one_form_stays(row: dict[str, Any]) -> None:
    before = copy.deepcopy(row)
    assert canonical_row(row) == row == before
    assert is_older(row) == padded_place(row) == ""


@pytest.mark.parametrize("name", [None, "light"])
@pytest.mark.parametrize("content", ["", None, "Let me see."])
def test_openais_form_of_2023(content: str | None, name: str | None) -> None:
    """https://platform.openai.com/docs/deprecations: functions and function_call are tools and tool_calls."""
    result = {"role": "function", "content": "ok", **({"name": name} if name else {})}
    row = {
        "messages": [USER, {"role": "assistant", "content": content, "function_call": OLDER}, result],
        "functions": [LIGHT["function"]],
    }
    found = canonical_row(row)
    call = found["messages"][1]["tool_calls"][0]
    assert found["tools"] == [LIGHT]
    assert "functions" not in found
    assert call == {"id": "call00001", "type": "function", "function": OLDER}
    assert found["messages"][1]["content"] == (content or "")
    assert "function_call" not in found["messages"][1]
    assert (found["messages"][2]["role"], found["messages"][2]["tool_call_id"]) == ("tool", "call00001")
    assert is_older(row) == "functions"
    assert is_older(found) == ""
    assert canonical_row(found) == found


@pytest.mark.parametrize(
    ("tools", "wanted"),
    [
        (json.dumps([LIGHT]), [LIGHT]),
        (json.dumps([LIGHT["function"]], indent=1), [LIGHT]),
        ([json.dumps(LIGHT)], [LIGHT]),
        ([{"name": "light", "description": "On or off.", "parameters": json.dumps(SCHEMA)}], [LIGHT]),
        ((LIGHT,), [LIGHT]),
        ("", None),
        ("[]", None),
        ("null", None),
        (None, None),
        ([], None),
        ("no JSON", "no JSON"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_tools_packed_in_text(tools: Any, wanted: Any) -> None:
    assert canonical_tools(tools) == wanted


@pytest.mark.parametrize(
    ("calls", "wanted"),
    [
        (json.dumps(called({})["tool_calls"]), called({})["tool_calls"]),
        (called({})["tool_calls"][0], called({})["tool_calls"]),
        ([OLDER], [{"type": "function", "function": OLDER}]),
        ([], None),
        (None, None),
    ],
)
def test_calls_packed_in_text(calls: Any, wanted: Any) -> None:
    message = canonical_messages([{"role": "assistant", "content": "x", "tool_calls": calls, "name": None}])[0]
    assert message == {"role": "assistant", "content": "x"} | ({"tool_calls": wanted} if wanted else {})


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ('{"room": "hall"}', {"room": "hall"}),
        ({"room": "hall"}, {"room": "hall"}),
        (' {\n "a": [1, {"b": null}]}', {"a": [1, {"b": None}]}),
        ("", {}),
        (None, {}),
        ("{", "{"),
        ("[1]", "[1]"),
        ("hall", "hall"),
        ('"{}"', '"{}"'),
    ],
)
def test_arguments(arguments: Any, wanted: Any) -> None:
    assert decode_arguments(arguments) == wanted


@pytest.mark.parametrize(
    ("extra", "is_padded"),
    [
        ({"description": None}, True),
        ({"strict": None}, True),
        ({"parameters": {**SCHEMA, "required": None}}, True),
        ({"parameters": {**SCHEMA, "properties": {**SCHEMA["properties"], "city": None}}}, True),
        ({"parameters": {"properties": {"room": {"type": "string", "enum": None, "default": None}}}}, True),
        ({"parameters": {"properties": {"room": {"type": "string", "default": None}}}}, False),
        ({"parameters": {"properties": {"room": {"enum": ["hall", None], "examples": [None]}}}}, False),
        ({"parameters": {"properties": {"default": None, "room": {"type": "string"}}}}, True),
        ({"parameters": {"properties": {"room": {"default": {"a": None}}}}}, False),
    ],
)
def test_nulls_that_arrow_pads_schemas_with(extra: dict[str, Any], is_padded: bool) -> None:
    tool = {"type": "function", "function": {"name": "light", **extra}}
    row = {"messages": [USER], "tools": [tool]}
    assert padded_place(row) == ("tools[0]" if is_padded else "")
    left = json.dumps(canonical_row(row)["tools"])
    assert ": null" not in left or not is_padded
    assert canonical_row(row)["tools"] == [tool] or is_padded


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"room": "hall", "city": None, "song": None}, {"room": "hall"}),  # names of other functions
        ({"room": "hall", "note": None}, {"room": "hall"}),  # may not be null
        ({"room": "hall", "level": None}, {"room": "hall", "level": None}),  # may be
        ({"room": None}, {"room": None}),  # required: wrong, and the check says so
        ('{"room": "hall", "city": null}', '{"room": "hall", "city": null}'),  # Arrow pads no text
    ],
)
def test_nulls_that_arrow_pads_arguments_with(arguments: Any, wanted: Any) -> None:
    row = {"messages": [USER, called(arguments)], "tools": [LIGHT]}
    assert canonical_row(row)["messages"][1] == called(wanted)
    without = {"messages": [USER, called(arguments)]}  # nobody says what may be null
    assert canonical_row(without) == without


@pytest.mark.parametrize(
    ("messages", "tools", "said"),
    [
        ([called("{")], None, "messages[0].tool_calls[0].function.arguments is neither"),
        ([called([1])], None, "arguments is neither"),
        ([{"role": "assistant", "tool_calls": "x"}], None, "tool_calls is not a list"),
        ([{"role": "assistant", "tool_calls": [{"id": "c"}]}], None, "tool_calls[0] has no function name"),
        ([], "x", "tools is a text that is no JSON list"),
        ([], {"a": 1}, "tools is a dict"),
        ([], [{"type": "function"}], "tools[0] has no function name"),
        (NEWER["messages"], NEWER["tools"], None),
    ],
)
def test_what_cannot_be_read_is_said(messages: list[Any], tools: Any, said: str | None) -> None:
    found = list(undecodable(messages, tools))
    assert (said in found[0] and len(found) == 1) if said else not found
