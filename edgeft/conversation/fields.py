"""What a conversation consists of, apart from its words, and the same with marks for words, to be looked for."""

import json
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Names of one field; transformers shows the first there is under the first two."""
THOUGHT_END = "</think>"
SHOWN = 4


class Turn(NamedTuple):
    """One message. `content`: none, words or thoughts (with `</think>`); `calls`: whether each has arguments."""

    role: str
    content: str
    thoughts: str
    calls: tuple[bool, ...]
    is_learned: bool


class Shape(NamedTuple):
    """A conversation without its words. `tools`: whether each has a description, and how many parameters."""

    turns: tuple[Turn, ...]
    tools: tuple[tuple[bool, int], ...]

    @property
    def has_calls(self) -> bool:
        return any(turn.calls for turn in self.turns)


def shape_of(messages: Sequence[Mapping[str, Any]], tools: Any) -> Shape:
    """The shape of canonical messages and tools."""
    offered = [_function(tool) for tool in tools] if isinstance(tools, list) else []
    return Shape(
        tuple(_turn(message) for message in messages),
        tuple((bool(_words(tool.get("description"))), len(_properties(tool))) for tool in offered),
    )


def with_marks(
    shape: Shape, form: Any, messages: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None, dict[str, str]]:
    """(messages, tools, place of each mark) of that shape; `form` is the `CallForm` of its calls, `messages` are those
    it was taken from, for the ids of calls and the names of results."""
    marks: dict[str, str] = {}
    numbers = count()

    def mark(place: str) -> str:
        word = f"zq{next(numbers):04d}z"
        marks[word] = place
        return word

    tools = [_marked_tool(has, n, f"tools[{at}]", mark) for at, (has, n) in enumerate(shape.tools)]
    turns = [
        _marked_turn(turn, message, form, f"messages[{at}]", mark)
        for at, (turn, message) in enumerate(zip(shape.turns, messages, strict=True))
    ]
    return turns, tools or None, marks


def lost_places(text: str, marks: Mapping[str, str]) -> tuple[str, ...]:
    """The places whose marks the text does not hold."""
    return tuple(place for word, place in marks.items() if word not in text)


def listed(places: Sequence[str]) -> str:
    """The first few of them, for a message."""
    more = len(places) - SHOWN
    return ", ".join(places[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _turn(message: Mapping[str, Any]) -> Turn:
    content = _words(message.get("content"))
    is_assistant = message.get("role") == "assistant"
    thoughts = next((name for name in THOUGHTS if _words(message.get(name))), "") if is_assistant else ""
    calls = message.get("tool_calls") if is_assistant else None
    return Turn(
        str(message.get("role")),
        "" if not content else "thoughts" if is_assistant and THOUGHT_END in content else "words",
        thoughts,
        tuple(bool(_arguments(call)) for call in calls) if isinstance(calls, list) else (),
        is_assistant and message.get("weight") != 0,
    )


def _marked_turn(turn: Turn, message: Mapping[str, Any], form: Any, place: str, mark: Any) -> dict[str, Any]:
    marked: dict[str, Any] = {
        name: message[name] for name in ("tool_call_id", "name") if isinstance(message.get(name), str)
    }
    marked["role"] = turn.role
    of_thoughts = "thoughts" if turn.is_learned else ""
    if turn.thoughts:
        marked[turn.thoughts] = mark(f"{place}.{turn.thoughts} ({of_thoughts})") if of_thoughts else "zq"
    if turn.content == "thoughts":
        inside = mark(f"{place}.content ({of_thoughts} before {THOUGHT_END})") if of_thoughts else "zq"
        marked["content"] = f"<think>\n{inside}\n{THOUGHT_END}\n\n{mark(f'{place}.content (assistant)')}"
    elif turn.content:
        marked["content"] = mark(f"{place}.content ({turn.role})")
    elif "content" in message:
        marked["content"] = ""
    calls = message.get("tool_calls")
    if turn.calls:
        marked["tool_calls"] = [
            _marked_call(has, call, form, f"{place}.tool_calls[{number}].function", mark)
            for number, (has, call) in enumerate(zip(turn.calls, calls or (), strict=True))
        ]
    return marked


def _marked_call(has_arguments: bool, call: Any, form: Any, place: str, mark: Any) -> dict[str, Any]:
    arguments: Any = {}
    name = mark(f"{place}.name")
    if has_arguments:
        arguments = {mark(f"{place}.arguments (names)"): mark(f"{place}.arguments (values)")}
    if form.arguments == "text":
        arguments = json.dumps(arguments)
    kept = {key: call[key] for key in ("id", "type") if isinstance(call, Mapping) and isinstance(call.get(key), str)}
    return {**kept, "function": {"name": name, "arguments": arguments}}


def _marked_tool(has_description: bool, n_parameters: int, place: str, mark: Any) -> dict[str, Any]:
    function: dict[str, Any] = {"name": mark(f"{place}.function.name")}
    if has_description:
        function["description"] = mark(f"{place}.function.description")
    names = [mark(f"{place}.function.parameters") for _ in range(n_parameters)]
    function["parameters"] = {
        "type": "object",
        "properties": {name: {"type": "string", "description": "zq"} for name in names},
        "required": names,
    }
    return {"type": "function", "function": function}


def _function(tool: Any) -> Mapping[str, Any]:
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def _properties(function: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    return properties if isinstance(properties, Mapping) else {}


def _arguments(call: Any) -> Any:
    arguments = _function(call).get("arguments")
    return arguments.strip() not in ("", "{}") if isinstance(arguments, str) else arguments


def _words(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""
