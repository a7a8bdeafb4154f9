"""One form of tool data, whatever form it came in. Nothing here changes what it is given, and nothing raises.

Forms read, and what they become:

- `function_call`, `functions` and the role `function`, OpenAI's form of 2023   `tool_calls`, `tools`, role `tool`
- `tools`, `tool_calls` or a schema as JSON text (ShareGPT, LLaMA-Factory)       the value
- a bare function in `tools`, a bare call in `tool_calls`                        wrapped as OpenAI wraps them
- nulls that Arrow and Parquet pad every struct with                             left out
- a call without words (`content` null or missing)                               `content` is ""

What cannot be read stays as it is, for those who check. A null that may be meant stays too: `default` in a schema
without other nulls, and an argument whose schema allows null, or that has no schema.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Message = dict[str, Any]
Json = dict[str, Any]

NULL_MEANT = ("default", "const")
"""Keywords of JSON Schema whose value may be null."""
DATA_KEYWORDS = (*NULL_MEANT, "enum", "examples")
"""Keywords whose values are data and no schemas."""


def canonical_row(row: Mapping[str, Any]) -> Json:
    """A line of a chat file, with `tools`, `messages` and `rejected` in the one form; the same when it was in it."""
    result = dict(row)
    functions = result.pop("functions", None)
    if functions and not result.get("tools"):
        result["tools"] = functions
    if "tools" in result:
        result["tools"] = canonical_tools(result["tools"])
        if result["tools"] is None:
            del result["tools"]
    for name in ("messages", "rejected"):
        if isinstance(result.get(name), list):
            result[name] = canonical_messages(result[name], result.get("tools"))
    return result


def canonical_tools(tools: Any) -> Any:
    """`tools` as a list of `{"type": "function", "function": {...}}`; None where there are none."""
    tools = _decoded(tools)
    if isinstance(tools, tuple):
        tools = list(tools)
    if tools is None or tools == [] or tools == "":
        return None
    if not isinstance(tools, list):
        return tools
    tools = [_tool(_decoded(tool)) for tool in tools]
    return [_without_nulls(tool) for tool in tools] if _is_padded(tools) else tools


def canonical_messages(messages: Sequence[Any], tools: Any = None) -> list[Any]:
    """Messages with `tool_calls` and role `tool`, without keys that are null; `tools` say which arguments may be."""
    schemas = _schemas(tools)
    result: list[Any] = []
    waiting: list[tuple[str, str]] = []  # (name, id) of calls without result
    for message in messages:
        if not isinstance(message, Mapping):
            result.append(message)
            continue
        message = _message(message, len(result), schemas)
        if message.get("role") == "tool":
            _take_id(message, waiting)
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            if isinstance(call, dict) and isinstance(call.get("id"), str):
                waiting.append((str(_function(call).get("name")), call["id"]))
        result.append(message)
    return result


def is_older(row: Mapping[str, Any]) -> str:
    """Which older or packed form of tool data the row has; empty for none."""
    if row.get("functions"):
        return "functions"
    if isinstance(row.get("tools"), str):
        return "tools is a JSON text"
    messages = row.get("messages")
    for at, message in enumerate(messages if isinstance(messages, list) else ()):
        if isinstance(message, Mapping):
            if message.get("function_call"):
                return f"messages[{at}].function_call"
            if message.get("role") == "function":
                return f"messages[{at}].role is 'function'"
            if isinstance(message.get("tool_calls"), str):
                return f"messages[{at}].tool_calls is a JSON text"
    return ""


def padded_place(row: Mapping[str, Any]) -> str:
    """Where nulls pad a tool's schema or the arguments of a call; empty for nowhere."""
    tools = _decoded(row.get("tools", row.get("functions")))
    for at, tool in enumerate(tools if isinstance(tools, list) else ()):
        if _is_padded([_tool(_decoded(tool))]):
            return f"tools[{at}]"
    schemas = _schemas(canonical_tools(tools))
    messages = row.get("messages")
    for at, message in enumerate(messages if isinstance(messages, list) else ()):
        calls = message.get("tool_calls") if isinstance(message, Mapping) else None
        for number, call in enumerate(calls if isinstance(calls, list) else ()):
            arguments = _function(call).get("arguments") if isinstance(call, Mapping) else None
            schema = schemas.get(str(_function(call).get("name"))) if isinstance(arguments, Mapping) else None
            if schema is not None and any(_is_padding(*pair, schema) for pair in dict(arguments or {}).items()):
                return f"messages[{at}].tool_calls[{number}].function.arguments"
    return ""


def decode_arguments(arguments: Any) -> Any:
    """The object that a call's arguments are, or the text of; what is neither comes back as it is."""
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        return {}
    if isinstance(arguments, str):
        value = _decoded(arguments)
        return value if isinstance(value, dict) else arguments
    return arguments


def with_text_arguments(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages as OpenAI's API takes them, which wants arguments as JSON text."""
    result = []
    for message in messages:
        calls = message.get("tool_calls")
        if isinstance(calls, list):
            message = {**message, "tool_calls": [_with_text(call) for call in calls]}
        result.append(dict(message))
    return result


def undecodable(messages: Sequence[Any], tools: Any) -> Iterator[str]:
    """What of canonical messages and tools cannot be read: the place and the problem, one a time."""
    if tools is not None and not isinstance(tools, list):
        kind = "a text that is no JSON list" if isinstance(tools, str) else f"a {type(tools).__name__}, not a list"
        yield f"tools is {kind}"
    for at, tool in enumerate(tools if isinstance(tools, list) else ()):
        if not isinstance(tool, Mapping) or not isinstance(_function(tool).get("name"), str):
            yield f"tools[{at}] has no function name"
    for at, message in enumerate(messages):
        calls = message.get("tool_calls") if isinstance(message, Mapping) else None
        if calls is not None and not isinstance(calls, list):
            yield f"messages[{at}].tool_calls is not a list"
            continue
        for number, call in enumerate(calls or ()):
            where = f"messages[{at}].tool_calls[{number}]"
            if not isinstance(call, Mapping) or not isinstance(_function(call).get("name"), str):
                yield f"{where} has no function name"
            elif not isinstance(decode_arguments(_function(call).get("arguments")), Mapping):
                yield f"{where}.function.arguments is neither an object nor the JSON text of one"


def _message(message: Mapping[str, Any], at: int, schemas: Mapping[str, Json]) -> Message:
    result = {key: value for key, value in message.items() if value is not None}
    calls = _decoded(result.get("tool_calls"))
    older = _decoded(result.pop("function_call", None))
    if isinstance(calls, Mapping):
        calls = [calls]
    if not calls and isinstance(older, Mapping) and older.get("name"):
        calls = [{"id": f"call{at:05d}", "type": "function", "function": dict(older)}]
    if isinstance(calls, (list, tuple)):
        result["tool_calls"] = [_call(_decoded(call), schemas) for call in calls]
        if not calls:
            del result["tool_calls"]
    if result.get("role") == "function":
        result["role"] = "tool"
    if result.get("tool_calls") and "content" not in result:
        result = {"role": result.pop("role", None), "content": "", **result}
    return result


def _call(call: Any, schemas: Mapping[str, Json]) -> Any:
    if not isinstance(call, Mapping):
        return call
    result = {key: value for key, value in call.items() if value is not None}
    if "function" not in result and isinstance(result.get("name"), str):
        inner = {key: result.pop(key) for key in ("name", "arguments") if key in result}
        result = {"type": "function", **result, "function": inner}
    if isinstance(result.get("function"), Mapping):
        function = {key: value for key, value in result["function"].items() if value is not None}
        schema = schemas.get(str(function.get("name")))
        if schema is not None and isinstance(function.get("arguments"), Mapping):
            given = function["arguments"].items()
            function["arguments"] = {name: value for name, value in given if not _is_padding(name, value, schema)}
        result["function"] = function
    return result


def _with_text(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or isinstance(function.get("arguments"), str):
        return call
    text = json.dumps(function.get("arguments") or {}, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}


def _take_id(message: Message, waiting: list[tuple[str, str]]) -> None:
    """Give a result without an id that of the call it answers: the first of its name, or the first of all."""
    if "tool_call_id" in message:
        waiting[:] = [pair for pair in waiting if pair[1] != message["tool_call_id"]]
        return
    found = next((pair for pair in waiting if pair[0] == message.get("name")), None)
    found = found or (waiting[0] if waiting and "name" not in message else None)
    if found is not None:
        waiting.remove(found)
        message["tool_call_id"] = found[1]


def _tool(tool: Any) -> Any:
    if not isinstance(tool, Mapping):
        return tool
    if "function" not in tool and isinstance(tool.get("name"), str):
        tool = {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}
    function = tool.get("function")
    if isinstance(function, Mapping) and isinstance(function.get("parameters"), str):
        parameters = _decoded(function["parameters"])
        if isinstance(parameters, Mapping):
            tool = {**tool, "function": {**function, "parameters": parameters}}
    return dict(tool)


def _function(value: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = value.get("function", value)
    return inner if isinstance(inner, Mapping) else {}


def _schemas(tools: Any) -> dict[str, Json]:
    """Of each tool's name, its parameters' schema."""
    found = {}
    for tool in tools if isinstance(tools, list) else ():
        function = _function(tool) if isinstance(tool, Mapping) else {}
        if isinstance(function.get("name"), str) and isinstance(function.get("parameters"), Mapping):
            found[function["name"]] = dict(function["parameters"])
    return found


def _is_padding(name: str, value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a null argument is one that the function has no such argument for, or that may not be null."""
    properties = schema.get("properties")
    if value is not None or not isinstance(properties, Mapping):
        return False
    own = properties.get(name)
    if not isinstance(own, Mapping):
        return not schema.get("additionalProperties")
    if name in (schema.get("required") or ()) or not isinstance(own.get("type"), (str, list)):
        return False
    return "null" not in (own["type"] if isinstance(own["type"], list) else [own["type"]]) and not own.get("nullable")


def _is_padded(value: Any, key: str = "") -> bool:
    """Whether a null stands where JSON Schema and OpenAI's tools know none."""
    if isinstance(value, Mapping):
        if key == "properties":
            return any(inner is None or _is_padded(inner) for inner in value.values())
        return any(
            name not in NULL_MEANT if inner is None else name not in DATA_KEYWORDS and _is_padded(inner, name)
            for name, inner in value.items()
        )
    return isinstance(value, list) and any(_is_padded(inner) for inner in value)


def _without_nulls(value: Any, key: str = "") -> Any:
    """A padded schema without nulls: there, a null `default` is padding too."""
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    if not isinstance(value, Mapping):
        return value
    kept = {}
    for name, inner in value.items():
        if inner is not None:
            is_data = name in DATA_KEYWORDS and key != "properties"
            kept[name] = inner if is_data else _without_nulls(inner, "" if key == "properties" else name)
    return kept


def _decoded(value: Any) -> Any:
    """The list or object that a text is in JSON; any other value as it is."""
    if not isinstance(value, str) or value.strip()[:1] not in ("{", "["):
        return None if isinstance(value, str) and value.strip() in ("", "null") else value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
