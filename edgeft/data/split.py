"""`edgeft data split`: which example goes to which file, from its content alone.

The place of an example follows from the hash of its group: adding or removing other examples moves few, and
the order of the file does not matter. Examples that are near duplicates, that differ in punctuation alone, and those
with the same value of `group`, are one group. Within a stratum (a label) groups are dealt out so that the shares hold
exactly.
"""

import hashlib
import re
from collections import defaultdict
from typing import Any

from edgeft.data.chat import conversation_key
from edgeft.data.check.duplicates import Bands, Joined
from edgeft.data.check.examine import Options, examine_rows
from edgeft.data.formats import Example
from edgeft.errors import UsageError

WORD = re.compile(r"\w+")
SPLITS = ("train", "validation", "test")


def parse_shares(text: str) -> tuple[float, float, float]:
    """`80/10/10` as shares of one. Raises UsageError."""
    try:
        parts = [float(part) for part in text.replace(",", "/").split("/")]
    except ValueError:
        parts = []
    if len(parts) != 3 or min(parts) < 0 or sum(parts) <= 0:
        raise UsageError(f"--shares {text!r}: write train/validation/test, e.g. 80/10/10")
    train, validation, test = (part / sum(parts) for part in parts)
    return train, validation, test


def split_examples(
    examples: list[Example],
    shares: tuple[float, float, float],
    *,
    stratify: str | None = None,
    group: str | None = None,
    seed: int = 42,
) -> list[str]:
    """The split of each example. `stratify` and `group` name fields of the example; `stratify: answer` is the
    last turn. Raises UsageError when no example has the field."""
    strata = [_field(example, stratify) if stratify else "" for example in examples]
    for name, option in ((stratify, "--stratify"), (group, "--group")):
        if name and name != "answer" and not any(name in example for example in examples):
            raise UsageError(f"{option} {name}: no example has this field")
    groups = _groups(examples, group)
    members: dict[int, list[int]] = defaultdict(list)
    for at, root in enumerate(groups):
        members[root].append(at)
    by_stratum: dict[str, list[tuple[str, list[int]]]] = defaultdict(list)
    for some in members.values():
        order = min(
            hashlib.sha256(f"{seed}\0{conversation_key(examples[at]['messages'])}".encode(errors="replace")).hexdigest()
            for at in some
        )
        by_stratum[min(strata[at] for at in some)].append((order, some))
    places = [""] * len(examples)
    for stratum in sorted(by_stratum):
        _deal(sorted(by_stratum[stratum]), shares, places)
    return places


def _deal(groups: list[tuple[str, list[int]]], shares: tuple[float, float, float], places: list[str]) -> None:
    """Give each group to the split that is furthest behind its share."""
    total = sum(len(some) for _, some in groups)
    given = [0] * len(SPLITS)
    for _, some in groups:
        behind = [share * total - n for share, n in zip(shares, given, strict=True)]
        best = max((at for at in range(len(SPLITS)) if shares[at] > 0), key=lambda at: (behind[at], -at))
        given[best] += len(some)
        for at in some:
            places[at] = SPLITS[best]


def _groups(examples: list[Example], group: str | None) -> list[int]:
    """For each example the smallest index of its group (union of near duplicates and equal fields)."""
    parent = list(range(len(examples)))

    def root(at: int) -> int:
        while parent[at] != at:
            parent[at] = parent[parent[at]]
            at = parent[at]
        return at

    def join(one: int, other: int) -> None:
        low, high = sorted((root(one), root(other)))
        parent[high] = low

    seen: dict[str, int] = {}
    for at, example in enumerate(examples):
        asked = _prompt(example)
        keys = ["content " + conversation_key(example["messages"]), "prompt " + asked]
        words = WORD.findall(asked)
        if len(words) > len(example["messages"]):  # more than the roles; one more mark hides a short text from MinHash
            keys.append("words " + " ".join(words))
        if group and group in example:
            keys.append("group " + repr(example[group]))
        for key in keys:
            join(at, seen.setdefault(key, at))
    for at, of in _near_twins(examples):
        join(at, of)
    return [root(at) for at in range(len(examples))]


def twins_of(examples: list[Example], *, near: bool) -> set[int]:
    """Indices of the examples that repeat an earlier one, exactly or nearly."""
    first: dict[str, int] = {}
    doubled = {
        at for at, example in enumerate(examples) if first.setdefault(conversation_key(example["messages"]), at) != at
    }
    if near:
        doubled |= {at for at, _ in _near_twins(examples)}
    return doubled


def _near_twins(examples: list[Example]) -> list[tuple[int, int]]:
    """(example, an earlier one nearly like it), by MinHash LSH."""
    part = examine_rows(list(enumerate(examples)), Options())
    bands = Bands()
    try:
        bands.add(part)
        lines = part.lines
        rows = Joined(lines * 0, lines, part.content, part.prompt, part.answer)
        return [(int(lines[twin.at]), int(lines[twin.of])) for twin in bands.twins(rows)]
    finally:
        bands.close()


def _prompt(example: Example) -> str:
    """What is asked; an example without a question is its own prompt."""
    asked = example["messages"][:-1]
    if all(message["role"] != "user" for message in asked):
        return conversation_key(example["messages"])
    return conversation_key(asked)


def _field(example: Example, name: str) -> str:
    if name == "answer":
        return str(example["messages"][-1]["content"]) if example["messages"] else ""
    value: Any = example.get(name)
    return "" if value is None else repr(value)
