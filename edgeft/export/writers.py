"""Threads that write the pieces of a file while the next ones are read."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from edgeft.console import Progress

PIECES_AHEAD = 3
"""Pieces a thread may lag behind the reader."""


class Writers:
    """`n_threads` threads, used in a `with` block.

    `done` is told the millions of weights written. `check` runs beside; when it fails, so do `submit` and `finish`,
    with what it raised.
    """

    def __init__(self, n_threads: int, done: Progress, check: Future[Any] | None = None) -> None:
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="edgeft-export")
        self._pending: deque[Future[int]] = deque()
        self._most = PIECES_AHEAD * n_threads
        self._done, self._check = done, check
        self._n_weights = 0

    def submit(self, write: Callable[..., int], *arguments: Any) -> None:
        """Let a thread call `write(*arguments)`, which returns the weights written; waits while too many wait.

        Raises what an earlier one raised.
        """
        if len(self._pending) >= self._most:
            self._finish_oldest()
        self._pending.append(self._pool.submit(write, *arguments))

    def finish(self) -> None:
        """Wait for all that was submitted. Raises what any of it raised."""
        while self._pending:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        self._n_weights += self._pending.popleft().result()
        if self._check is not None and self._check.done():
            self._check.result()
        self._done.update(self._n_weights // 1_000_000)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
