"""What every renderer shows: a table with its notes."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """`columns` start with `>` when their cells are numbers (aligned right); `shrinks` is the column that may
    be cut where the place is narrow, None: no column. `detail`: left out where the place is short.

    `links` maps the text of a cell or a note to the file of the run that it leads to. Where the place is short, `most`
    rows are shown, and cells are cut to `widest` characters. `long_texts`: cells are texts of several lines."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: list[str] = field(default_factory=list)
    shrinks: int | None = None
    detail: bool = False
    links: Mapping[str, str] = field(default_factory=dict)
    most: int | None = None
    widest: int | None = None
    long_texts: bool = False
