"""Tool calls as models write them in text, whatever their template's form, as values to compare.

Forms read (S is a JSON object with a name and arguments):

- `S`, or `[S, S]`, the whole text                    plain JSON, edgeft's own templates, Llama 3 (`parameters`)
- `<tool_call>S</tool_call>`, once or more            Hermes, Qwen, SmolLM3 in its JSON mode
- `[TOOL_CALLS] [S, S]` or `[TOOL_CALLS]name{...}`    Mistral, older and newer
- `<|python_tag|>S`                                   Llama 3.1
- a message's own `tool_calls`                        OpenAI's `{"function": {"name", "arguments"}}`
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgeft.bench.json_values import INVALID, canonical, parse_container, parse_json

NAMES, ARGUMENTS = ("name", "tool", "function"), ("arguments", "parameters", "args")
OUTSIDE = ("type", "id", "index")  # of OpenAI's calls: no arguments
TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
MISTRAL, LLAMA = "[TOOL_CALLS]", "<|python_tag|>"
MISTRAL_NAMED = re.compile(r"([\w.-]+)\s*(?:\[ARGS\])?\s*(\{.*)", re.DOTALL)
UNREADABLE = ("unreadable", None)

Calls = Counter[tuple[str, Any]]
"""Calls as (name, arguments in canonical form), with how often each is made; order is lost."""


def parse_calls(text: str) -> Calls | None:
    """The calls in `text`; empty where its JSON names no tool (`{"tool": null}`), None where it is no call at all.

    A call that begins and cannot be read counts as a call that equals none. Arguments that are a JSON text are read
    (OpenAI's way); in an object without `arguments` the other names are the arguments.
    """
    text = text.strip()
    if "<tool_call>" in text:
        return _read(parse_json(part) for part in TAGGED.findall(text))
    if MISTRAL in text:
        return _read(value for part in text.split(MISTRAL)[1:] for value in _mistral(part.strip()))
    value = parse_container(text.removeprefix(LLAMA).strip())
    values = value if isinstance(value, list) and value else [value]
    if any(not isinstance(each, dict) or not _has_name(each) for each in values):
        return Counter({UNREADABLE: 1}) if text.startswith(LLAMA) else None
    return _read(values)


def same_calls(found: Calls | None, wanted: Calls | None) -> bool:
    """Whether both make the same calls, or none; a call that cannot be read equals no other."""
    return (found or Counter()) == (wanted or Counter()) and UNREADABLE not in (found or ())


def calls_text(calls: Sequence[Mapping[str, Any]]) -> str:
    """OpenAI's `tool_calls` of a message as the JSON text that `parse_calls` reads."""
    functions = [call.get("function", call) if isinstance(call, Mapping) else {} for call in calls]
    return json.dumps([{"name": f.get("name"), "arguments": f.get("arguments")} for f in functions], ensure_ascii=False)


def _read(values: Any) -> Calls:
    calls: Calls = Counter()
    for value in values:
        for each in value if isinstance(value, list) else [value]:
            call = _call(each)
            if call is not None:
                calls[call] += 1
    return calls


def _call(value: Any) -> tuple[str, Any] | None:
    """(name, arguments) of one JSON value; None where its name is null."""
    if not isinstance(value, dict) or not _has_name(value):
        return UNREADABLE
    if isinstance(value.get("function"), dict):
        return _call(value["function"])
    key = next(each for each in NAMES if each in value)
    if value[key] is None:
        return None
    given = next((each for each in ARGUMENTS if each in value), None)
    arguments = value[given] if given else {k: v for k, v in value.items() if k != key and k not in OUTSIDE}
    if isinstance(arguments, str):
        arguments = parse_json(arguments) if arguments.strip() else {}
    if arguments is INVALID or not isinstance(value[key], str):
        return UNREADABLE
    return value[key], canonical(arguments if arguments is not None else {})


def _has_name(value: Mapping[str, Any]) -> bool:
    return any(name in value for name in NAMES)


def _mistral(part: str) -> Iterator[Any]:
    if named := MISTRAL_NAMED.fullmatch(part):
        yield {"name": named[1], "arguments": parse_json(named[2])}
    else:
        yield parse_json(part)
