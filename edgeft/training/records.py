"""The learning log: log.jsonl always, one object a line, and whoever else wants the numbers."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from edgeft.artifact import write_atomic
from edgeft.machine.files import sync
from edgeft.training.reporting import Reporter

EVALUATION = "train_loss"  # a row that has it is of an evaluation


class Records:
    """Rows of numbers, each with its `step`; `path` None keeps them in memory only.

    `keep_up_to` is the step a run resumes at: later rows of the file are of steps that will be done again, and so
    is the evaluation at that step unless `evaluated`.
    The file is cut in one rename, so that a kill never leaves less than what was kept.
    """

    def __init__(
        self, path: Path | None, *, keep_up_to: int, evaluated: bool = True, reporters: Sequence[Reporter] = ()
    ) -> None:
        self.path, self.reporters = path, reporters
        self.rows = _read(path, keep_up_to, evaluated) if path is not None and keep_up_to else []
        self.file = None
        if path is not None:
            write_atomic(path, "".join(json.dumps(row) + "\n" for row in self.rows))
            self.file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self.file is not None:
            self.file.close()

    def write(self, step: int, **numbers: float) -> None:
        """Add a row, at once in the file."""
        row = {"step": step, **numbers}
        self.rows.append(row)
        if self.file is not None:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()
        for report in self.reporters:
            report(step, numbers)

    def sync(self) -> None:
        """Wait until the rows are on the disk: a checkpoint must not be newer than the log."""
        if self.path is not None:
            sync(self.path)

    def column(self, name: str, after: int = 0) -> list[float]:
        """Every value of `name` in rows of steps above `after`."""
        return [row[name] for row in self.rows if name in row and row["step"] > after]


def _read(path: Path, keep_up_to: int, evaluated: bool) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    if not os.path.exists(path):
        return rows
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            kept = row["step"] < keep_up_to + (evaluated or EVALUATION not in row)
        except (ValueError, KeyError, TypeError):  # a line cut short by a kill
            break
        if kept:
            rows.append(row)
    return rows
