"""What a run's model is talked to with: the same that a bundle of it would bring along."""

import json
from dataclasses import dataclass
from itertools import islice
from typing import Any

from edgeft.bundle.contents import generation_defaults
from edgeft.bundle.run import Run
from edgeft.runtime.defaults import OPTIONS, Defaults

EXAMPLES = 200
"""Training examples that are looked at."""


@dataclass(frozen=True)
class Habits:
    """What training examples have in common: the `tools` offered, and whether none has an earlier answer in it."""

    tools: list[dict[str, Any]] | None = None
    single: bool = False


def run_defaults(run: Run) -> Defaults:
    """Length, context, sampling and system message."""
    generation = generation_defaults(run)
    return Defaults(
        options={key: generation[key] for key in OPTIONS if key in generation},
        system=generation.get("system"),
        n_ctx=generation.get("n_ctx"),
    )


def training_habits(run: Run) -> Habits:
    """Of the first examples of the training split; none where the run has no chats."""
    data = run.stages.get("data")
    if data is None or "train.jsonl" not in data.files:
        return Habits()
    with data.file("train.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, EXAMPLES)]
    chats = [row for row in rows if isinstance(row.get("messages"), list)]
    if not chats:
        return Habits()
    offered = [row.get("tools") for row in chats]
    same = all(tools == offered[0] for tools in offered)
    single = all(sum(turn["role"] == "assistant" for turn in row["messages"]) <= 1 for row in chats)
    return Habits(offered[0] if same and offered[0] else None, single)
