"""The shapes training data comes in, and the one it is turned into.

In memory every example is a dict with `messages` (OpenAI chat messages, content as text) and, where there
are any, `tools`, `parallel_tool_calls`, `rejected` (messages that are worse than the last ones) and
`rejected_from` (how many messages come before both, when it is not all but the last). Tool data of older forms is
brought into the one form. Every other field of the source stays beside them. A format reads a row into that form,
and writes a row from it; both say what was lost.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgeft.data.formats import alpaca, chat, pairs, preference, sharegpt, snips, text
from edgeft.data.formats.common import Example, Losses, Row, Unreadable, with_newer_tools
from edgeft.errors import UsageError

__all__ = ["FORMATS", "Example", "Format", "Losses", "Row", "Unreadable", "by_name", "detect"]


@dataclass(frozen=True)
class Format:
    """One shape of rows. `read` raises Unreadable for a row that is not of it."""

    name: str
    fits: Callable[[Row], bool]
    read: Callable[[Row, Losses], list[Example]]
    write: Callable[[Example, Losses], Row]


def _newer(read: Callable[[Row, Losses], list[Example]]) -> Callable[[Row, Losses], list[Example]]:
    """`read`, with tool data in older forms written in the one form."""

    def newer(row: Row, losses: Losses) -> list[Example]:
        return [with_newer_tools(example, losses) for example in read(row, losses)]

    return newer


# The order is that of detection: the first that fits.
FORMATS = (
    Format("preference", preference.fits, _newer(preference.read), preference.write),
    Format("dpo", pairs.fits_dpo, _newer(pairs.read_dpo), pairs.write_dpo),
    Format("chat", chat.fits, _newer(chat.read), chat.write),
    Format("sharegpt", sharegpt.fits, _newer(sharegpt.read), sharegpt.write),
    Format("alpaca", alpaca.fits, alpaca.read, alpaca.write),
    Format("prompt-completion", pairs.fits_completion, _newer(pairs.read_completion), pairs.write_completion),
    Format("snips", snips.fits, snips.read, snips.write),
    Format("text", text.fits, text.read, text.write),
)


def by_name(name: str) -> Format:
    """The format called `name`. Raises UsageError."""
    for known in FORMATS:
        if known.name == name:
            return known
    raise UsageError(f"unknown format {name!r}; known: {', '.join(known.name for known in FORMATS)}")


def detect(rows: list[Any]) -> Format | None:
    """The format most of the rows fit, or None."""
    votes: dict[str, int] = {}
    for row in rows:
        found = next((known.name for known in FORMATS if isinstance(row, dict) and known.fits(row)), None)
        if found:
            votes[found] = votes.get(found, 0) + 1
    return by_name(max(votes, key=lambda name: votes[name])) if votes else None
