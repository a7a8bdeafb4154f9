"""Tool calls in an answer's text, in the forms that models write.

Forms read (S is a JSON object with a name and arguments); special tokens are no part of the text:

- `<tool_call>S</tool_call>`, once or more    Hermes, Qwen, SmolLM3
- `S` or `[S, S]`, the whole text             Llama 3 (`parameters`), Mistral, edgeft's own templates (`tool`)
- `name{...}`                                 Mistral's newer form
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgeft.runtime.model import ToolCall

TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
NAMED = re.compile(r"(?:\[TOOL_CALLS\])?\s*([\w.-]+)\s*(?:\[ARGS\])?\s*(\{.*\})", re.DOTALL)
MARKS = re.compile(r"^\s*(?:\[TOOL_CALLS\]|<\|python_tag\|>)")
NAMES, ARGUMENTS = ("name", "tool", "function"), ("arguments", "parameters", "args")


def parse_calls(text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[ToolCall, ...]:
    """The calls of `tools` that the whole of `text` makes; empty when it is an answer in words.

    Calls of other tools are none: they cannot be carried out.
    """
    known = {str(tool.get("function", tool).get("name")) for tool in tools}
    return tuple(call for value in _values(text) if (call := _call(value)) is not None and call.name in known)


def _values(text: str) -> Iterator[Any]:
    """The JSON values that may be calls."""
    if "<tool_call>" in text:
        parts = TAGGED.findall(text)
    elif named := NAMED.fullmatch(text.strip()):
        yield {"name": named[1], "arguments": _json(named[2])}
        return
    else:
        parts = [MARKS.sub("", text)]
    for part in parts:
        value = _json(part)
        yield from value if isinstance(value, list) else [value]


def _call(value: Any) -> ToolCall | None:
    if not isinstance(value, Mapping):
        return None
    if isinstance(value.get("function"), Mapping):
        value = value["function"]
    name = next((value[key] for key in NAMES if key in value), None)
    arguments: Any = next((value[key] for key in ARGUMENTS if key in value), {})
    if isinstance(arguments, str):  # OpenAI's form: JSON inside JSON
        arguments = _json(arguments)
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        return None
    return ToolCall(name, arguments)


def _json(text: str) -> Any:
    """None for a text that is no JSON, which is no call either."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
