"""Turns on something that only one thread may use at a time."""

import threading
from collections import deque
from types import TracebackType


class Turns:
    """A lock that threads get in the order in which they asked for it.

    `threading.Lock` promises no order: a thread that gives it back and asks again at once nearly always wins.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        try:
            mine.acquire()  # released by the one before
        except BaseException:  # KeyboardInterrupt: whoever comes next must not wait for this one
            self._give_up(mine)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._pass_on()

    def _give_up(self, mine: threading.Lock) -> None:
        with self._lock:
            if mine in self._waiting:
                self._waiting.remove(mine)
            else:
                self._pass_on()

    def _pass_on(self) -> None:
        if self._waiting:
            self._waiting.popleft().release()
        else:
            self._taken = False
