"""Prompt and completion, and TRL's DPO columns prompt, chosen, rejected; each as text or as messages."""

from typing import Any

from edgeft.data.formats.common import (
    Example,
    Losses,
    Message,
    Row,
    Unreadable,
    canonical_messages,
    lose,
    others,
    prompt_length,
    with_rejected,
)

SETTINGS = ("tools", "parallel_tool_calls")
# Names others use for the two columns.
ALIASES = (
    ("prompt", "completion"), ("question", "answer"), ("prompt", "response"), ("input", "output"),
    ("query", "response"), ("text", "label"), ("text", "category"), ("text", "intent"), ("source", "target"),
    ("instruction", "response"),
)  # fmt: skip


def fits_completion(row: Row) -> bool:
    return _columns(row) is not None


def read_completion(row: Row, losses: Losses) -> list[Example]:
    names = _columns(row)
    if names is None:
        raise Unreadable("no prompt and completion; name the columns with --map prompt=... --map completion=...")
    prompt, completion = names
    if names != ALIASES[0]:
        losses[f"column names {prompt} and {completion}: they are prompt and completion now"] += 1
    messages = _turns(row[prompt], "user", prompt, losses) + _turns(row[completion], "assistant", completion, losses)
    return [{"messages": messages} | _settings(row) | others(row, (*names, *SETTINGS), losses)]


def write_completion(example: Example, losses: Losses) -> Row:
    lose(example, ("rejected", "rejected_from"), losses)
    messages = example["messages"]
    row = {"prompt": messages[:-1], "completion": messages[-1:]}
    if _plain(messages):
        row = {"prompt": messages[0]["content"], "completion": messages[1]["content"]}
    used = ("messages", "rejected", "rejected_from", *SETTINGS, "prompt", "completion")
    return row | _settings(example) | others(example, used, losses)


def fits_dpo(row: Row) -> bool:
    return "conversations" not in row and "chosen" in row and "rejected" in row


def read_dpo(row: Row, losses: Losses) -> list[Example]:
    chosen = _turns(row.get("chosen"), "assistant", "chosen", losses)
    rejected = _turns(row.get("rejected"), "assistant", "rejected", losses)
    if row.get("prompt") is not None:
        prompt = _turns(row["prompt"], "user", "prompt", losses)
    else:  # TRL's implicit prompt: what both conversations begin with
        same = 0
        while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
            same += 1
        prompt, chosen, rejected = chosen[:same], chosen[same:], rejected[same:]
    example = with_rejected(prompt, chosen, rejected)
    return [example | _settings(row) | others(row, ("prompt", "chosen", "rejected", *SETTINGS), losses)]


def write_dpo(example: Example, losses: Losses) -> Row:
    at = prompt_length(example)
    if "rejected" not in example:
        losses["no rejected answer: written as an empty list"] += 1
    row = {
        "prompt": example["messages"][:at],
        "chosen": example["messages"][at:],
        "rejected": example.get("rejected", []),
    }
    used = ("messages", "rejected", "rejected_from", *SETTINGS, *row)
    return row | _settings(example) | others(example, used, losses)


def _columns(row: Row) -> tuple[str, str] | None:
    return next(((a, b) for a, b in ALIASES if a in row and b in row), None)


def _settings(row: Row) -> Row:
    return {name: row[name] for name in SETTINGS if name in row}


def _turns(value: Any, role: str, name: str, losses: Losses) -> list[Message]:
    """Text as one turn of `role`, messages as they are; a list of texts is joined by spaces."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, list):
        if value and all(isinstance(item, str) for item in value):
            losses[f"borders inside the list {name}: joined by spaces"] += 1
            return [{"role": role, "content": " ".join(value)}]
        return canonical_messages(value, losses, name)
    if value is None or isinstance(value, dict):
        raise Unreadable(f"{name} is {'null' if value is None else 'an object'}, not text or messages")
    losses[f"type of {name}: {type(value).__name__} written as text"] += 1
    return [{"role": role, "content": str(value)}]


def _plain(messages: list[Message]) -> bool:
    roles = [message["role"] for message in messages]
    return roles == ["user", "assistant"] and all(set(message) == {"role", "content"} for message in messages)
