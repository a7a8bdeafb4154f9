"""Alpaca rows: instruction, input, output (or response), system, history; self-instruct rows with instances.

The user's turn is the instruction, a blank line and the input. `input` also stays beside the messages, so
that the row can be written again.
"""

from typing import Any

from edgeft.data.formats.common import Example, Losses, Message, Row, Unreadable, lose, others

ANSWERS = ("output", "response", "completion")
USED = ("instruction", "input", "system", "history", "instances", *ANSWERS)


def fits(row: Row) -> bool:
    return "instruction" in row and (any(name in row for name in ANSWERS) or "instances" in row)


def read(row: Row, losses: Losses) -> list[Example]:
    if "instances" not in row:
        return [_read_one(row, losses)]
    if not isinstance(row["instances"], list) or not all(isinstance(one, dict) for one in row["instances"]):
        raise Unreadable("instances is not a list of objects")
    if len(row["instances"]) > 1:
        losses["which instances shared a row"] += 1
    shared = {name: value for name, value in row.items() if name != "instances"}
    return [_read_one(shared | one, losses) for one in row["instances"]]


def _read_one(row: Row, losses: Losses) -> Example:
    answer = next((name for name in ANSWERS if name in row), None)
    if answer is None:
        raise Unreadable("no output")
    if answer != "output":
        losses[f"column name {answer}: it is output now"] += 1
    messages: list[Message] = []
    if row.get("system") is not None:
        messages.append({"role": "system", "content": _text(row, "system")})
    messages += _history(row.get("history"))
    user = _text(row, "instruction")
    given = _text(row, "input") if row.get("input") is not None else None
    if given:
        user += "\n\n" + given
    messages += [{"role": "user", "content": user}, {"role": "assistant", "content": _text(row, answer)}]
    example: Example = {"messages": messages} | others(row, USED, losses)
    if given is not None:
        example["input"] = given
    return example


def write(example: Example, losses: Losses) -> Row:
    lose(example, ("tools", "parallel_tool_calls", "rejected", "rejected_from"), losses)
    messages = list(example["messages"])
    row: Row = {}
    if messages and messages[0]["role"] == "system":
        row["system"] = messages.pop(0)["content"]
    roles = [message["role"] for message in messages]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise Unreadable("alpaca holds turns of user and assistant in alternation, ending with the assistant's")
    for message in messages:
        for name in message.keys() - {"role", "content"}:
            losses[f"messages[].{name}: the format has no place for it"] += 1
    texts = [message["content"] for message in messages]
    if len(texts) > 2:
        row["history"] = [list(pair) for pair in zip(texts[:-2:2], texts[1:-2:2], strict=True)]
    instruction, given = texts[-2], example.get("input")
    if isinstance(given, str) and given and instruction.endswith("\n\n" + given):
        instruction = instruction.removesuffix("\n\n" + given)
    elif given:
        given = None
        losses["field input: it is not the end of the user's turn"] += 1
    row |= {"instruction": instruction} | ({"input": given} if given is not None else {}) | {"output": texts[-1]}
    used = ("messages", "tools", "parallel_tool_calls", "rejected", "rejected_from", *USED)
    return row | others(example, used, losses)


def _text(row: Row, name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise Unreadable(f"{name} is {type(value).__name__}, not text")
    return value


def _history(value: Any) -> list[Message]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in value
    ):
        raise Unreadable("history is not a list of [question, answer]")
    turns = []
    for question, answer in value:
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return turns
