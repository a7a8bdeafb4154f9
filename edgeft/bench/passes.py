"""Repeating a short piece of work for a time, not for a count: a slow or busy machine makes fewer passes, not longer
measurements."""

import time
from collections.abc import Callable

Clock = Callable[[], float]


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
