"""OpenAI chat: {"messages": [{"role", "content"}, ...], "tools": [...], ...}; also KTO rows with a label."""

from edgeft.data.formats.common import RESERVED, Example, Losses, Row, canonical_messages


def fits(row: Row) -> bool:
    return "messages" in row


def read(row: Row, losses: Losses) -> list[Example]:
    example: Example = {"messages": canonical_messages(row.get("messages"), losses)}
    example |= {name: value for name, value in row.items() if name != "messages"}
    if "rejected" in row:
        example["rejected"] = canonical_messages(row["rejected"], losses, "rejected")
    return [example]


def write(example: Example, losses: Losses) -> Row:
    first = {name: example[name] for name in RESERVED if name in example}
    return first | {name: value for name, value in example.items() if name not in RESERVED}
