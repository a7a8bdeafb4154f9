"""SNIPS NLU rows: {"intent": ..., "data": [{"text", "entity"?}, ...]}; the answer is the intent and its slots."""

import json

from edgeft.data.formats.common import Example, Losses, Row, Unreadable, dump, others


def fits(row: Row) -> bool:
    return isinstance(row.get("data"), list) and isinstance(row.get("intent"), str)


def read(row: Row, losses: Losses) -> list[Example]:
    if not fits(row) or not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in row["data"]):
        raise Unreadable("not an intent with a list of {text, entity}")
    slots: dict[str, list[str]] = {}
    for part in row["data"]:
        if isinstance(part.get("entity"), str):
            slots.setdefault(part["entity"], []).append(part["text"])
    said = "".join(part["text"] for part in row["data"])
    answer = dump({"intent": row["intent"], "slots": slots})
    messages = [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
    return [{"messages": messages, "data": row["data"]} | others(row, ("intent", "data"), losses)]


def write(example: Example, losses: Losses) -> Row:
    try:
        intent = json.loads(example["messages"][-1]["content"])["intent"]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        raise Unreadable("the answer is not a JSON object with an intent") from None
    row = {"intent": intent, "data": example.get("data")}
    if read(row, losses)[0]["messages"] != example["messages"]:
        raise Unreadable("the messages are not those of the field data")
    return row | others(example, ("messages", "intent", "data"), losses)
