"""Work for a time, not for a count: a slow or busy machine makes fewer passes, not longer measurements."""

import math
import time
from collections.abc import Callable

Clock = Callable[[], float]
SPEED_SHARE = 1 / 3
"""Of a time limit, at most, for speed where answers are scored as well."""


class TimeLimit:
    """`seconds` from now on; None: no limit. Only the clock decides, never what was measured."""

    def __init__(self, seconds: float | None = None, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self._ends = math.inf if seconds is None else clock() + seconds

    @property
    def left_s(self) -> float | None:
        """Seconds left, 0 when the time is up; None without a limit."""
        return None if math.isinf(self._ends) else max(0.0, self._ends - self.clock())

    def allows(self, seconds: float = 0.0) -> bool:
        """Whether work that takes so long may begin."""
        left_s = self.left_s
        return left_s is None or seconds < left_s

    def part(self, share: float) -> "TimeLimit":
        """A limit of this share of what is left, from now on."""
        left_s = self.left_s
        return TimeLimit(None if left_s is None else share * left_s, self.clock)


def pass_seconds(
    run: Callable[[], object], limit_s: float, clock: Clock = time.perf_counter, wall: Clock = time.perf_counter
) -> list[float]:
    """Seconds of `clock` for each pass of `run` after one that is not measured.

    No pass begins when `limit_s` seconds of `wall` have passed since the first began; one at least is measured.
    """
    began = wall()
    run()
    times: list[float] = []
    while not times or wall() - began < limit_s:
        started = clock()
        run()
        times.append(clock() - started)
    return times
