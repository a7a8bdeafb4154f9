"""Talk with the person at the terminal: one-line messages and progress, both to stderr.

stdout belongs to results. On a terminal progress is a bar with rate and time left; elsewhere (a log file, CI)
it is a plain line at most every ten seconds.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, TextIO

PLAIN_INTERVAL_S = 10.0


class Progress(Protocol):
    """A running count."""

    def update(self, done: int, note: str = "") -> None:
        """Say that `done` units of the total are finished (an absolute count)."""
        ...


class Log(Protocol):
    """Where a stage talks."""

    def say(self, text: str) -> None:
        """One line of talk."""
        ...

    def progress(self, label: str, total: int, unit: str, start: int = 0) -> AbstractContextManager[Progress]:
        """A running count of `total` units (named by `unit`, plural) while the block lasts.

        `start` units were done before (resumed work) and do not count for the rate.
        """
        ...


def terminal_log(stream: TextIO | None = None) -> Log:
    """The log for a command: bars on a terminal, plain lines elsewhere. `stream` defaults to stderr."""
    stream = stream or sys.stderr
    return _BarLog(stream) if stream.isatty() else _PlainLog(stream)


def silent_log() -> Log:
    """A log that says nothing, for library use and tests."""
    return _SilentLog()


class _SilentLog:
    def say(self, text: str) -> None:
        pass

    def progress(self, label: str, total: int, unit: str, start: int = 0) -> AbstractContextManager[Progress]:
        return nullcontext(_SilentProgress())


class _SilentProgress:
    def update(self, done: int, note: str = "") -> None:
        pass


class _PlainLog:
    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def say(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    @contextmanager
    def progress(self, label: str, total: int, unit: str, start: int = 0) -> Iterator[Progress]:
        yield _PlainProgress(self, label, total, unit, start)


class _PlainProgress:
    def __init__(self, log: _PlainLog, label: str, total: int, unit: str, start: int) -> None:
        self.log, self.label, self.total, self.unit, self.start = log, label, total, unit, start
        self.started = self.said = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if now - self.said < PLAIN_INTERVAL_S:
            return
        self.said = now
        rate = (done - self.start) / max(now - self.started, 1e-9)
        left = time_left(done, self.total, rate)
        tail = f"  {note}" if note else ""
        self.log.say(f"{self.label}: {done}/{self.total} {self.unit}, {rate:.3g}/s{left and f', {left} left'}{tail}")


def time_left(done: float, total: float, rate: float) -> str:
    """What `total - done` units take at the mean `rate` a second so far, as `42 s`, `7:05` or `2:50:00`; empty where
    nothing is known yet."""
    if rate <= 0 or done > total:
        return ""
    seconds = round((total - done) / rate)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class _BarLog:
    """Bars drawn with rich, which is loaded when the first bar appears."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.bars: Any = None

    def say(self, text: str) -> None:
        if self.bars is None:
            print(text, file=self.stream, flush=True)
        else:
            self.bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def progress(self, label: str, total: int, unit: str, start: int = 0) -> Iterator[Progress]:
        if self.bars is not None:  # a bar inside a bar
            yield _BarProgress(self.bars, label, total, unit, start)
            return
        self.bars = _new_bars(self.stream)
        try:
            with self.bars:
                yield _BarProgress(self.bars, label, total, unit, start)
        finally:
            self.bars = None


class _BarProgress:
    def __init__(self, bars: Any, label: str, total: int, unit: str, start: int) -> None:
        self.bars, self.total, self.start = bars, total, start
        self.task = bars.add_task(label, total=total, completed=start, unit=unit, rate="", left="", note="")
        self.started = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        rate = (done - self.start) / max(time.monotonic() - self.started, 1e-9)
        left = time_left(done, self.total, rate)
        self.bars.update(self.task, completed=done, rate=f"{rate:.3g}/s", left=left and f"{left} left", note=note)


def _new_bars(stream: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]} {task.fields[rate]}", markup=False),
        TextColumn("{task.fields[left]}", markup=False),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(file=stream),
        transient=True,
    )
