"""What all formats share."""

import json
from collections import Counter
from typing import Any

from edgeft.conversation.canonical import canonical_messages as newer_messages
from edgeft.conversation.canonical import canonical_row, is_older, padded_place

Row = dict[str, Any]
Example = dict[str, Any]
Message = dict[str, Any]
Losses = Counter[str]

ROLES = ("system", "developer", "user", "assistant", "tool")
OLDER = "older or packed form of tool data (function_call, functions, tools as text): tool_calls, tools, role tool now"
PADDED = "nulls that pad tools or arguments: left out"
RESERVED = ("messages", "tools", "parallel_tool_calls", "rejected", "rejected_from")


class Unreadable(ValueError):
    """A row that is not of the format; the message says why."""


def others(row: Row, used: tuple[str, ...], losses: Losses) -> Row:
    """The fields of `row` that are not `used`, kept beside the messages; names we need ourselves are lost."""
    kept = {}
    for name, value in row.items():
        if name in used:
            continue
        if name in RESERVED:
            losses[f"field {name}: edgeft uses the name itself"] += 1
        else:
            kept[name] = value
    return kept


def text_of(content: Any, losses: Losses) -> str:
    """Text of a message's content. Raises Unreadable for what is neither text, null nor text parts."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if isinstance(content, list):
        texts = []
        for part in content:
            if isinstance(part, str):
                texts.append(part)
            elif isinstance(part, dict) and isinstance(said := part.get("text", part.get("refusal")), str):
                texts.append(said)
            else:
                kind = part.get("type") if isinstance(part, dict) else type(part).__name__
                losses[f"content part of type {kind}: only text is learned"] += 1
        if len(texts) != 1:
            losses["borders between content parts"] += 1
        return "".join(texts)
    raise Unreadable(f"content is {type(content).__name__}, not text")


def canonical_messages(messages: Any, losses: Losses, name: str = "messages") -> list[Message]:
    """OpenAI messages with content as text. Raises Unreadable."""
    if not isinstance(messages, list):
        raise Unreadable(f"{name} is not a list")
    if is_older({"messages": messages}):
        losses[OLDER] += 1
        messages = newer_messages(messages)
    result = []
    for at, message in enumerate(messages):
        if not isinstance(message, dict):
            raise Unreadable(f"{name}[{at}] is not an object")
        role = message.get("role")
        if role not in ROLES:
            raise Unreadable(f"{name}[{at}].role is {role!r}; known roles: {', '.join(ROLES)}")
        rest = {key: value for key, value in message.items() if key not in ("role", "content")}
        result.append({"role": role, "content": text_of(message.get("content"), losses), **rest})
    return result


def with_newer_tools(row: Row, losses: Losses) -> Row:
    """The row with its tool data in the one form, where it is not; told in `losses`."""
    try:
        if is_older(row):
            losses[OLDER] += 1
        elif padded_place(row):
            losses[PADDED] += 1
        else:
            return row
        return canonical_row(row)
    except RecursionError:
        raise Unreadable("nested too deeply") from None


def dump(value: Any) -> str:
    """One JSON text for one value."""
    return json.dumps(value, ensure_ascii=False)


def prompt_length(example: Example) -> int:
    """How many messages the preferred and the rejected continuation share."""
    default = max(0, len(example["messages"]) - 1)
    at = example.get("rejected_from", default)
    return at if isinstance(at, int) and 0 <= at <= len(example["messages"]) else default


def with_rejected(prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> Example:
    """A preference example."""
    example: Example = {"messages": prompt + chosen, "rejected": rejected}
    if len(chosen) != 1:
        example["rejected_from"] = len(prompt)
    return example


def lose(example: Example, names: tuple[str, ...], losses: Losses) -> None:
    """Count the fields a format has no place for."""
    for name in names:
        if example.get(name):
            losses[f"field {name}: the format has no place for it"] += 1
