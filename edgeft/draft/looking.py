"""What task a set of examples is: seen from the answers alone.

| task | when |
|---|---|
| `tools` | half of the answers call tools |
| `json` | 95 % of the answers are JSON objects or arrays |
| `labels` | short answers, few different ones, which nearly all come again |
| `text` | anything else |
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Task = Literal["tools", "json", "labels", "text"]
CALLS_SHARE, JSON_SHARE, REPEATED_SHARE = 0.5, 0.95, 0.9
LONGEST_LABEL_CHARS = 80
USES_OF_A_LABEL = 3  # on average: fewer, and it is no list to choose from


@dataclass(frozen=True)
class Seen:
    """`examples` is how many there are, `labels` how often each label is the answer (of `labels` alone), `turns` how
    many answers an example has at most, `system` whether any has a system message."""

    task: Task
    examples: int
    labels: Counter[str]
    turns: int
    system: bool

    def sentence(self) -> str:
        """What was seen, for a person."""
        what = {
            "tools": "tool calls",
            "json": "answers in JSON",
            "labels": f"{len(self.labels)} labels",
            "text": "answers in free text",
        }[self.task]
        return f"{self.examples:,} examples, {what}"


def look(examples: Sequence[dict[str, Any]]) -> Seen:
    """Say what task `examples` (chat form, at least one) are."""
    answers = [example["messages"][-1] for example in examples]
    texts = [str(answer.get("content") or "") for answer in answers]
    calls = sum(bool(answer.get("tool_calls")) for answer in answers)
    labels: Counter[str] = Counter()
    if calls >= CALLS_SHARE * len(answers):
        task: Task = "tools"
    elif sum(map(_is_container, texts)) >= JSON_SHARE * len(texts):
        task = "json"
    elif _are_labels(found := Counter(text.strip() for text in texts)):
        task, labels = "labels", found
    else:
        task = "text"
    roles = [[message["role"] for message in example["messages"]] for example in examples]
    return Seen(
        task=task,
        examples=len(examples),
        labels=labels,
        turns=max(some.count("assistant") for some in roles),
        system=any("system" in some or "developer" in some for some in roles),
    )


def _is_container(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _are_labels(answers: Counter[str]) -> bool:
    n = answers.total()
    repeated = sum(count for count in answers.values() if count > 1)
    short = max(map(len, answers)) <= LONGEST_LABEL_CHARS
    return short and 1 < len(answers) <= n / USES_OF_A_LABEL and repeated >= REPEATED_SHARE * n
