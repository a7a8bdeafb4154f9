"""Tool definitions, calls and results of one conversation."""

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

Problem = tuple[str, str]


def tool_problems(row: dict[str, Any], messages: list[dict[str, Any]]) -> Iterator[Problem]:
    """(code, detail); `messages` are objects with known roles."""
    tools = row.get("tools")
    parameters: dict[str, Any] = {}
    if tools is not None:
        if not isinstance(tools, list):
            yield "E301", "not a list"
            return
        for at, tool in enumerate(tools):
            function = tool.get("function", tool) if isinstance(tool, dict) else None
            name = function.get("name") if isinstance(function, dict) else None
            if not isinstance(function, dict) or not isinstance(name, str) or not name:
                yield "E301", f"tools[{at}] has no function name"
                continue
            if name in parameters:
                yield "E312", name[:60]
            parameters[name] = function.get("parameters")
            if parameters[name] is not None and (what := schema_fault(_dumped(parameters[name]))):
                yield "E307", f"{name[:60]}: {what}"
                parameters[name] = None
    yield from _calls(row, messages, parameters, tools is not None)


def _calls(
    row: dict[str, Any], messages: list[dict[str, Any]], parameters: dict[str, Any], has_tools: bool
) -> Iterator[Problem]:
    waiting: dict[str, int] = {}
    seen: set[str] = set()
    for at, message in enumerate(messages):
        if message["role"] == "tool":
            answered = message.get("tool_call_id")
            if not isinstance(answered, str) or waiting.pop(answered, None) is None:
                yield "E306", f"messages[{at}]"
            continue
        if waiting and message["role"] in ("user", "assistant"):
            yield "E305", f"messages[{next(iter(waiting.values()))}]"
            waiting = {}
        calls = message.get("tool_calls")
        if not calls:
            continue
        where = f"messages[{at}].tool_calls"
        if not isinstance(calls, list):
            yield "E308", where
            continue
        if len(calls) > 1 and row.get("parallel_tool_calls") is False:
            yield "E310", f"{len(calls)} calls in messages[{at}]"
        for number, call in enumerate(calls):
            function = call.get("function") if isinstance(call, dict) else None
            name = function.get("name") if isinstance(function, dict) else None
            identity = call.get("id") if isinstance(call, dict) else None
            if not isinstance(name, str) or not isinstance(identity, str) or not isinstance(function, dict):
                yield "E308", f"{where}[{number}]"
                continue
            if identity in seen:
                yield "E309", f"{where}[{number}]: {identity[:40]}"
            seen.add(identity)
            waiting[identity] = at
            if name not in parameters:
                yield "E302", name[:60] if has_tools else f"{name[:60]}; the line defines no tools"
            yield from _argument_problems(function.get("arguments"), parameters.get(name), f"{where}[{number}]")
    if waiting and messages[-1]["role"] != "assistant":
        yield "E305", f"messages[{next(iter(waiting.values()))}]"


def _argument_problems(arguments: Any, schema: Any, where: str) -> Iterator[Problem]:
    if not isinstance(arguments, dict):
        try:
            arguments = json.loads(arguments)
        except (ValueError, TypeError, RecursionError):
            yield "E303", where
            return
        if not isinstance(arguments, dict):
            yield "E303", f"{where}: {type(arguments).__name__}, not an object"
            return
    if schema is None:
        return
    what = schema_mismatch(_dumped(schema), arguments)
    if what:
        yield "E304", f"{where}: {what}"


def schema_mismatch(schema: str, value: Any) -> str:
    """Why `value` does not fit the JSON Schema (as text), or "" when it does or the schema is unusable."""
    validator = _validator(schema)
    if validator is None:
        return ""
    try:
        error = next(validator.iter_errors(value), None)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return "cannot be validated"
    return str(error.message)[:160] if error is not None else ""


def _dumped(value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True)
    except (ValueError, TypeError, RecursionError):
        return ""


@lru_cache(maxsize=512)
def schema_fault(schema: str) -> str:
    import jsonschema_rs

    try:
        value = json.loads(schema)
        if not isinstance(value, dict):
            return "not an object"
        jsonschema_rs.meta.validate(value)
    except (ValueError, TypeError, RecursionError) as error:
        return str(getattr(error, "message", error)).splitlines()[0][:160]
    return ""


@lru_cache(maxsize=512)
def _validator(schema: str) -> Any:
    import jsonschema_rs

    try:  # references to files or the network are refused: data must not make us fetch
        return jsonschema_rs.validator_for(json.loads(schema), retriever=_refuse)
    except (ValueError, TypeError, RecursionError, jsonschema_rs.ReferencingError):
        return None


def _refuse(uri: str) -> Any:
    raise ValueError(f"{uri}: references outside the schema are not followed")
