"""How far a run is, in a file that another terminal can read: WORKDIR/<recipe>/status.json.

The file is a help, never a reason for a run to fail: what cannot be written is not, and stages never read it.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from edgeft.artifact import writing
from edgeft.console import Log, Progress
from edgeft.errors import EdgeftError
from edgeft.machine.process import is_alive, started_at

STATUS, FORMAT = "status.json", 1
WRITE_EVERY_S = 1.0
RUNNING, DONE, FAILED, STOPPED = "running", "done", "failed", "stopped"
TO_DO, UP_TO_DATE = "to do", "up to date"
UNSURE_AFTER_S = 600.0
"""A run on another machine that has said nothing for so long is taken for stopped."""


class Watcher(Protocol):
    """Who is told what a run does; may raise, which ends the run."""

    def planned(self, stages: Sequence[tuple[str, bool]]) -> None:
        """Every stage with whether it is up to date, before anything is made."""

    def begins(self, stage: str) -> None:
        """A stage is made from here on."""

    def ends(self, artifact: Any) -> None:
        """An artifact is there, made or found up to date."""


class Unwatched:
    """A Watcher that does nothing."""

    def planned(self, stages: Sequence[tuple[str, bool]]) -> None:
        """See `Watcher`."""

    def begins(self, stage: str) -> None:
        """See `Watcher`."""

    def ends(self, artifact: Any) -> None:
        """See `Watcher`."""


class RunStatus(Unwatched):
    """Writes the file. `source` says what was run: `recipe_file` and `overrides`."""

    def __init__(self, path: Path, recipe: str, source: Mapping[str, Any]) -> None:
        self.path, self.written_s = path, 0.0
        now, pid = time.time(), os.getpid()
        self.content: dict[str, Any] = {
            "format": FORMAT, "recipe": recipe, "state": RUNNING, "message": "", "pid": pid,
            "process_started": started_at(pid), "host": socket.gethostname(), "started_s": now, "updated_s": now,
            "stages": [], "progress": None, **source,
        }  # fmt: skip

    def planned(self, stages: Sequence[tuple[str, bool]]) -> None:
        """See `Watcher`. Nothing is ever written for a run that is up to date."""
        rows = [{"stage": stage, "state": UP_TO_DATE if there else TO_DO, "seconds": None} for stage, there in stages]
        if any(row["state"] == TO_DO for row in rows):
            self.content["stages"] = rows
            self._write()

    def begins(self, stage: str) -> None:
        """See `Watcher`."""
        self._row(stage).update(state=RUNNING, began_s=time.time())
        self.content["progress"] = None
        self._write()

    def ends(self, artifact: Any) -> None:
        """See `Watcher`."""
        row = self._row(artifact.stage)
        if row.get("state") == RUNNING:
            row.update(state=DONE, seconds=round(time.time() - row["began_s"], 3))
            self.content["progress"] = None
            self._write()

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Keep how the block ends."""
        try:
            yield
        except KeyboardInterrupt:
            self._end(STOPPED, "interrupted")
            raise
        except BaseException as error:
            self._end(FAILED, str(error) if isinstance(error, EdgeftError) else type(error).__name__)
            raise
        self._end(DONE, "")

    def log(self, log: Log) -> Log:
        """`log`, and its running counts in the file as well."""
        return _FollowedLog(log, self)

    def progress(self, label: str, total: int, unit: str, start: int) -> None:
        """A running count begins."""
        self.content["progress"] = {
            "label": label, "total": total, "unit": unit, "start": start, "done": start, "note": "",
            "began_s": time.time(),
        }  # fmt: skip
        self._write()

    def counted(self, done: int, note: str) -> None:
        """The running count goes on; written at most once a second."""
        if (progress := self.content["progress"]) is not None:
            progress.update(done=done, note=note)
            if time.monotonic() - self.written_s >= WRITE_EVERY_S:
                self._write()

    def _end(self, state: str, message: str) -> None:
        if self.content["stages"]:
            self.content.update(state=state, message=message, progress=None)
            self._write()

    def _row(self, stage: str) -> dict[str, Any]:
        return next((row for row in self.content["stages"] if row["stage"] == stage), {})

    def _write(self) -> None:
        if not self.content["stages"]:
            return
        self.written_s, self.content["updated_s"] = time.monotonic(), time.time()
        with contextlib.suppress(OSError, EdgeftError), writing(self.path, durable=False) as temporary:
            temporary.write_text(json.dumps(self.content), encoding="utf-8")


class _FollowedLog:
    def __init__(self, log: Log, status: RunStatus) -> None:
        self.inner, self.status = log, status

    def say(self, text: str) -> None:
        self.inner.say(text)

    @contextmanager
    def progress(self, label: str, total: int, unit: str, start: int = 0) -> Iterator[Progress]:
        self.status.progress(label, total, unit, start)
        with self.inner.progress(label, total, unit, start) as progress:
            yield _FollowedProgress(progress, self.status)


class _FollowedProgress:
    def __init__(self, progress: Progress, status: RunStatus) -> None:
        self.inner, self.status = progress, status

    def update(self, done: int, note: str = "") -> None:
        self.inner.update(done, note)
        self.status.counted(done, note)


def read_status(run: Path) -> dict[str, Any] | None:
    """What the file in a run's folder says, a run whose process is gone as `stopped`; None where there is none."""
    try:
        content: dict[str, Any] = json.loads((run / STATUS).read_bytes())
        if content["format"] != FORMAT:
            return None
        if content["state"] == RUNNING and not _lives(content):
            content.update(state=STOPPED, message="its process is gone", progress=None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return content


def _lives(content: Mapping[str, Any]) -> bool:
    if content["host"] == socket.gethostname():
        return is_alive(content["pid"], content["process_started"])
    return bool(time.time() - content["updated_s"] < UNSURE_AFTER_S)


def seconds_left(status: Mapping[str, Any], predicted: Mapping[str, float], now_s: float) -> float | None:
    """For the whole run, from what its stages were predicted to take (in seconds, by stage) and what they took.

    The pace of this run, over the stages done and the one being made, corrects what is predicted for the others. None
    where a stage to come has no prediction and nothing is known of it.
    """
    rows = status["stages"]
    running = next((row for row in rows if row["state"] == RUNNING), None)
    waiting = [row["stage"] for row in rows if row["state"] == TO_DO]
    if any(stage not in predicted for stage in waiting):
        return None
    took = sum(row["seconds"] for row in rows if row["state"] == DONE and row["stage"] in predicted)
    meant = sum(predicted[row["stage"]] for row in rows if row["state"] == DONE and row["stage"] in predicted)
    counted = _of_count(status["progress"], now_s)
    elapsed = now_s - running["began_s"] if running else 0.0
    foreseen = predicted.get(running["stage"]) if running else 0.0
    if running and foreseen and counted is not None:
        took, meant = took + elapsed + counted, meant + foreseen
    pace = took / meant if meant > 0 else 1.0
    if running and foreseen is None and counted is None:
        return None
    current = max(counted or 0.0, (foreseen or 0.0) * pace - elapsed) if running else 0.0
    return current + pace * sum(predicted[stage] for stage in waiting)


def _of_count(progress: Mapping[str, Any] | None, now_s: float) -> float | None:
    """Seconds that the running count still takes at its pace so far; None before anything was counted."""
    if not progress or progress["done"] <= progress["start"] or progress["total"] < progress["done"]:
        return None
    each_s = (now_s - progress["began_s"]) / (progress["done"] - progress["start"])
    return float(each_s * (progress["total"] - progress["done"]))
