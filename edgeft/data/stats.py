"""Tokens of data files under a recipe's tokenizer and template, and the optimizer steps they make."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeft.console import Log
from edgeft.data.reading import Reading
from edgeft.data.rendering import ChatTokenizer, encode_chat

SAMPLE_EXAMPLES = 20_000


@dataclass(frozen=True)
class TokenStats:
    """Counts of one file. Beyond SAMPLE_EXAMPLES examples every n-th is encoded and the sums are scaled."""

    file: str
    examples: int
    encoded: int
    unusable: int
    tokens: int
    loss_tokens: int
    kept_tokens: int  # of examples no longer than max_length
    p50: int
    p95: int
    longest: int
    too_long: int

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


def count_tokens(tokenizer: ChatTokenizer, reading: Reading, max_length: int, log: Log) -> TokenStats:
    """Encode the examples of a file as the data stage does. What the template refuses is counted as unusable."""
    lengths: list[int] = []
    examples = unusable = loss = 0
    for number, (_, example) in enumerate(reading.examples):
        examples += 1
        if number >= SAMPLE_EXAMPLES and number % 10:
            continue
        try:
            ids, mask = encode_chat(tokenizer, example["messages"], example.get("tools"))
        except Exception:  # a template is a program of somebody else's
            unusable += 1
            continue
        lengths.append(len(ids))
        loss += sum(mask)
        if len(lengths) % 2000 == 0:
            log.say(f"{reading.path.name}: {len(lengths)} examples encoded")
    ordered = sorted(lengths) or [0]
    scale = examples / max(1, len(lengths) + unusable)
    return TokenStats(
        file=str(Path(reading.path)),
        examples=examples,
        encoded=len(lengths),
        unusable=unusable + len(reading.problems),
        tokens=round(scale * sum(lengths)),
        loss_tokens=round(scale * loss),
        kept_tokens=round(scale * sum(n for n in lengths if n <= max_length)),
        p50=ordered[len(ordered) // 2],
        p95=ordered[int(0.95 * (len(ordered) - 1))],
        longest=ordered[-1],
        too_long=round(scale * sum(n > max_length for n in lengths)),
    )


def steps_of(kept_tokens: int, batch_tokens: int, epochs: float) -> int:
    """Optimizer steps, about: batches are filled with whole examples, so there may be a few more."""
    return math.ceil(math.ceil(kept_tokens / batch_tokens) * epochs)
