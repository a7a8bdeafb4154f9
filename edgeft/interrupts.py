"""Ctrl-C, SIGTERM and SIGHUP: work ends where it can be kept, and says what is kept.

A process that is asked to end gets `Interrupted`, raised like KeyboardInterrupt, of which it is a kind: nothing that
catches an Exception swallows it, and every `finally` and `with` on the way puts away what is half-done.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, Self

# Windows has no SIGHUP.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
EXIT_CODE = 128  # plus the signal's number: 130 for Ctrl-C, 143 for SIGTERM, 129 for a terminal that went away


class Interrupted(KeyboardInterrupt):
    """Someone asked the process to end, by the signal `number`. `kept` says in words what the next run goes on from."""

    def __init__(self, number: int = signal.SIGINT, kept: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.number = number
        self.kept = kept


def exit_code(error: BaseException) -> int:
    """What the command line returns for an interrupt."""
    return EXIT_CODE + (error.number if isinstance(error, Interrupted) else signal.SIGINT)


@contextmanager
def terminable() -> Iterator[None]:
    """Inside the block, SIGTERM and SIGHUP raise Interrupted, as Ctrl-C raises KeyboardInterrupt.

    A signal someone has chosen to ignore (`nohup`) or to handle stays theirs.
    """

    def end(number: int, _: FrameType | None) -> None:
        raise Interrupted(number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        ours = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_DFL]
        before = {number: signal.signal(number, end) for number in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Pause:
    """Inside the block a signal ends the work between two changes that belong together, not within one.

    Outside of `held` blocks the first signal raises Interrupted at once, or, without `at_once`, is only remembered in
    `asked` for the work to see. Inside it is remembered and raised when the block ends. A second Ctrl-C always raises.
    In other threads than the main one, where Python hears no signals, nothing happens.
    """

    def __init__(self, *, at_once: bool = True) -> None:
        self.at_once = at_once
        self.asked: int | None = None
        self._holding = self._ending = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            ours = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
            self._before = {number: signal.signal(number, self._hear) for number in ours}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A change that must not be left half-done."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self.asked is not None and self.at_once and not self._ending:
            self._end(self.asked)

    def _hear(self, number: int, _: FrameType | None) -> None:
        if self.asked is not None:
            if number == signal.SIGINT:
                self._end(number)
            return
        self.asked = number
        if self.at_once and not self._holding:
            self._end(number)

    def _end(self, number: int) -> NoReturn:
        self._ending = True
        raise Interrupted(number)
