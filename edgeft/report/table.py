"""What every renderer shows: a table with its notes."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """`columns` start with `>` when their cells are numbers (aligned right); `shrinks` is the column that may
    be cut where the place is narrow, None: no column. `detail`: left out where the place is short."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: list[str] = field(default_factory=list)
    shrinks: int | None = None
    detail: bool = False
