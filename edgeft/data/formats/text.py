"""Running text: {"text": ...}; there is no prompt, so the text is one assistant turn."""

from edgeft.data.formats.common import Example, Losses, Row, Unreadable, lose, others


def fits(row: Row) -> bool:
    return isinstance(row.get("text"), str)


def read(row: Row, losses: Losses) -> list[Example]:
    if not fits(row):
        raise Unreadable("no text")
    return [{"messages": [{"role": "assistant", "content": row["text"]}]} | others(row, ("text",), losses)]


def write(example: Example, losses: Losses) -> Row:
    lose(example, ("tools", "parallel_tool_calls", "rejected", "rejected_from"), losses)
    messages = example["messages"]
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise Unreadable("text holds one assistant turn and no prompt")
    used = ("messages", "text", "tools", "parallel_tool_calls", "rejected", "rejected_from")
    return {"text": messages[0]["content"]} | others(example, used, losses)
