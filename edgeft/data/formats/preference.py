"""OpenAI preference rows: {"input": {"messages", "tools"}, "preferred_output", "non_preferred_output"}."""

from edgeft.data.formats.common import (
    Example,
    Losses,
    Row,
    Unreadable,
    canonical_messages,
    others,
    prompt_length,
    with_rejected,
)

USED = ("input", "preferred_output", "non_preferred_output")
SETTINGS = ("tools", "parallel_tool_calls")


def fits(row: Row) -> bool:
    return "preferred_output" in row and "non_preferred_output" in row


def read(row: Row, losses: Losses) -> list[Example]:
    asked = row.get("input")
    if not isinstance(asked, dict):
        raise Unreadable("input is not an object with messages")
    example = with_rejected(
        canonical_messages(asked.get("messages"), losses, "input.messages"),
        canonical_messages(row.get("preferred_output"), losses, "preferred_output"),
        canonical_messages(row.get("non_preferred_output"), losses, "non_preferred_output"),
    )
    for name in asked:
        if name in SETTINGS:
            example[name] = asked[name]
        elif name != "messages":
            losses[f"field input.{name}"] += 1
    return [example | others(row, USED, losses)]


def write(example: Example, losses: Losses) -> Row:
    at = prompt_length(example)
    asked = {"messages": example["messages"][:at]} | {name: example[name] for name in SETTINGS if name in example}
    if "rejected" not in example:
        losses["no rejected answer: written as an empty list"] += 1
    row = {
        "input": asked,
        "preferred_output": example["messages"][at:],
        "non_preferred_output": example.get("rejected", []),
    }
    return row | others(example, ("messages", "rejected", "rejected_from", *SETTINGS, *USED), losses)
