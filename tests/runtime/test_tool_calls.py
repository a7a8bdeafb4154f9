"""Calls in the forms that model families document: the texts are examples of their own documentation."""

from typing import Any

import pytest

from edgeft.runtime import ToolCall
from edgeft.runtime.tool_calls import parse_calls

TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}},
    {"name": "set-timer"},
]
PARIS = ToolCall("get_weather", {"city": "Paris"})
TIMER = ToolCall("set-timer", {"minutes": 10})


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>', [PARIS]),  # Hermes
        (
            '<think>\n\n</think>\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "set-timer", "arguments": {"minutes": 10}}\n</tool_call>',
            [PARIS, TIMER],
        ),
        ('<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}', [PARIS]),  # the end tag was an end token
        ('{"name": "get_weather", "parameters": {"city": "Paris"}}', [PARIS]),  # Llama 3.1
        ('<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}', [PARIS]),
        ('[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}]', [PARIS]),  # Mistral
        (' [{"name": "get_weather", "arguments": {"city": "Paris"}}, {"name": "set-timer", "arguments": '
         '{"minutes": 10}}]', [PARIS, TIMER]),
        ('get_weather{"city": "Paris"}', [PARIS]),
        ('[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}', [PARIS]),
        ('{"function": {"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}}', [PARIS]),  # OpenAI
        ('{"tool": "set-timer", "arguments": {"minutes": 10}}', [TIMER]),
        ('{"name": "set-timer"}', [ToolCall("set-timer", {})]),
        ('{"name": "format_disk", "arguments": {}}', []),  # nobody offered it
        ('{"tool": null}', []),
        ("It is sunny in Paris.", []),
        ('The call is {"name": "get_weather", "arguments": {"city": "Paris"}}', []),
        ('{"name": "get_weather", "arguments": {"city": "Par', []),
        ('{"name": "get_weather", "arguments": [1]}', []),
        ("<tool_call>what?</tool_call>", []),
        ("[1, null, [], {}]", []),
        ("[" * 100_000, []),
        ("", []),
    ],
)  # fmt: skip
def test_calls(text: str, calls: list[Any]) -> None:
    assert list(parse_calls(text, TOOLS)) == calls
