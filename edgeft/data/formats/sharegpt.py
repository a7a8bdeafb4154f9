"""ShareGPT rows: {"conversations": [{"from": "human", "value": ...}, ...]}, with LLaMA-Factory's additions:
system, tools, function_call and observation turns, chosen and rejected."""

import json
from typing import Any

from edgeft.data.formats.common import (
    Example,
    Losses,
    Message,
    Row,
    Unreadable,
    dump,
    others,
    prompt_length,
    with_rejected,
)

SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "model": "assistant", "system": "system", "developer": "developer",
    "observation": "tool", "tool": "tool", "function_response": "tool",
}  # fmt: skip
WRITTEN = {"user": "human", "assistant": "gpt", "system": "system", "developer": "developer", "tool": "observation"}
USED = ("conversations", "system", "tools", "chosen", "rejected", "parallel_tool_calls")


def fits(row: Row) -> bool:
    return "conversations" in row


def read(row: Row, losses: Losses) -> list[Example]:
    if not isinstance(row.get("conversations"), list):
        raise Unreadable("conversations is not a list")
    turns = [_turn(turn, f"conversations[{at}]", losses) for at, turn in enumerate(row["conversations"])]
    if isinstance(row.get("system"), str) and row["system"]:
        turns.insert(0, {"role": "system", "content": row["system"]})
    _number_calls(turns)
    example: Example = {"messages": turns}
    if "chosen" in row and "rejected" in row:
        example = with_rejected(
            turns, [_turn(row["chosen"], "chosen", losses)], [_turn(row["rejected"], "rejected", losses)]
        )
    if row.get("tools"):
        example["tools"] = _tools(row["tools"])
    if "parallel_tool_calls" in row:
        example["parallel_tool_calls"] = row["parallel_tool_calls"]
    return [example | others(row, USED, losses)]


def write(example: Example, losses: Losses) -> Row:
    messages = example["messages"]
    row: Row = {}
    if "rejected" in example:
        at = prompt_length(example)
        chosen, rejected = messages[at:], example["rejected"]
        if len(chosen) != 1 or len(rejected) != 1:
            raise Unreadable("sharegpt holds one chosen and one rejected turn")
        messages = messages[:at]
        row = {"chosen": _written(chosen[0], losses), "rejected": _written(rejected[0], losses)}
    row["conversations"] = [_written(message, losses) for message in messages]
    if "tools" in example:
        row["tools"] = dump(example["tools"])
    if "parallel_tool_calls" in example:
        row["parallel_tool_calls"] = example["parallel_tool_calls"]
    return row | others(example, ("messages", "rejected", "rejected_from", *USED), losses)


def _turn(turn: Any, where: str, losses: Losses) -> Message:
    if not isinstance(turn, dict):
        raise Unreadable(f"{where} is not an object")
    speaker, value = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    if not isinstance(value, str):
        raise Unreadable(f"{where}.value is {type(value).__name__}, not text")
    rest = {name: v for name, v in turn.items() if name not in ("from", "value", "role", "content")}
    if speaker == "function_call":
        call = _call(value)
        if call is not None:
            return {"role": "assistant", "content": "", "tool_calls": [call], **rest}
        losses["function_call that is no JSON call: kept as the assistant's text"] += 1
        return {"role": "assistant", "content": value, **rest}
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise Unreadable(f"{where}.from is {speaker!r}; known: {', '.join(SPEAKERS)}, function_call")
    return {"role": SPEAKERS[speaker], "content": value, **rest}


def _call(value: str) -> Any:
    try:
        call = json.loads(value)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or "arguments" not in call or len(call) > 2:
        return None
    arguments = call["arguments"]
    arguments = arguments if isinstance(arguments, str) else dump(arguments)
    return {"type": "function", "function": {"name": call["name"], "arguments": arguments}}


def _number_calls(turns: list[Message]) -> None:
    """Give calls and the results that follow them the ids of OpenAI's form, in order."""
    number, waiting = 0, ""
    for turn in turns:
        for call in turn.get("tool_calls") or () if turn["role"] == "assistant" else ():
            if isinstance(call, dict) and "id" not in call:
                waiting = call["id"] = f"call_{number}"
                number += 1
        if turn["role"] == "tool" and waiting and "tool_call_id" not in turn:
            turn["tool_call_id"] = waiting


def _written(message: Message, losses: Losses) -> Row:
    rest = {name: value for name, value in message.items() if name not in ("role", "content")}
    calls = rest.get("tool_calls")
    if message["role"] == "assistant" and isinstance(calls, list) and len(calls) == 1 and not message["content"]:
        try:
            function = calls[0]["function"]
            value = dump({"name": function["name"], "arguments": _parsed(function["arguments"])})
        except (TypeError, KeyError):
            value = ""
        if value and _call(value) and _call(value)["function"] == function and _plain_id(calls[0].get("id")):
            return {"from": "function_call", "value": value} | {k: v for k, v in rest.items() if k != "tool_calls"}
    if message["role"] == "tool" and _plain_id(rest.get("tool_call_id")):
        rest.pop("tool_call_id", None)
    return {"from": WRITTEN[message["role"]], "value": message["content"], **rest}


def _plain_id(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("call_") and value[5:].isdecimal()


def _parsed(arguments: str) -> Any:
    """The arguments as a value if writing them again gives the same text, else the text."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if not isinstance(value, str) and dump(value) == arguments else arguments


def _tools(value: Any) -> Any:
    """LLaMA-Factory writes tools as a JSON text of bare functions; OpenAI's form wraps each."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise Unreadable("tools is neither a list nor the JSON text of one") from None
    if not isinstance(value, list):
        raise Unreadable("tools is not a list")
    return [
        {"type": "function", "function": tool}
        if isinstance(tool, dict) and "name" in tool and "function" not in tool
        else tool
        for tool in value
    ]
