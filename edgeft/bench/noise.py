"""What disturbed a measurement, and the rule that calls it noisy.

A run is *noisy* when the hypervisor stole more than STEAL of the processor time, when other processes used more
than OTHERS of it, or when the medians of its repetitions differ by more than SPREAD.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeft.machine.process import clock_ticks_per_s, involuntary_switches

STEAL = 0.01
"""Share of all cores' time."""
OTHERS = 0.05
"""Share of all cores' time."""
SPREAD = 0.05
"""Largest of the medians over the smallest, less 1."""
SHORTEST_S = 0.5
"""Under this, ticks of 10 ms say nothing about shares of a percent."""

STAT = Path("/proc/stat")
USER, NICE, SYSTEM, IDLE, IOWAIT, IRQ, SOFTIRQ, STOLEN = range(8)
"""Columns of the line `cpu` of /proc/stat (proc_stat(5))."""


class Watch:
    """Watches the machine from its making until `stop`."""

    def __init__(self, stat: Path = STAT) -> None:
        self.stat = stat
        self._ticks = _ticks(stat)
        self._own_s, self._switches, self._began = time.process_time(), involuntary_switches(), time.perf_counter()

    def stop(self) -> dict[str, Any]:
        """`seconds` watched, `steal_share` and `others_share` of all cores' time (None: not known, or too short a
        time), and this process's `involuntary_switches` (None: not known)."""
        seconds = time.perf_counter() - self._began
        own_s, switches, after = time.process_time() - self._own_s, involuntary_switches(), _ticks(self.stat)
        steal = others = None
        if self._ticks and after and seconds >= SHORTEST_S:
            used = [new - old for old, new in zip(self._ticks, after, strict=True)]
            total = max(sum(used), 1)
            busy = total - used[IDLE] - used[IOWAIT] - used[STOLEN]
            steal = used[STOLEN] / total
            others = max(0.0, (busy - own_s * clock_ticks_per_s()) / total)
        return {
            "seconds": round(seconds, 3),
            "steal_share": _rounded(steal),
            "others_share": _rounded(others),
            "involuntary_switches": None if switches is None else switches - (self._switches or 0),
        }


def judge(watched: Mapping[str, Any], medians: Sequence[float]) -> dict[str, Any]:
    """`noisy` by the rule of this module, the `reasons` as sentences, and the `median_spread` (None: one median).

    `watched` is what `Watch.stop` gave, `medians` one number for each repetition.
    """
    spread = max(medians) / min(medians) - 1 if len(medians) > 1 and min(medians) > 0 else None
    named = (
        (watched.get("steal_share"), STEAL, "the hypervisor took {} of the processor time"),
        (watched.get("others_share"), OTHERS, "other processes used {} of the processor time"),
        (spread, SPREAD, "the medians of the repetitions differ by {}"),
    )
    reasons = [
        f"{text.format(f'{share:.1%}')} (more than {limit:.0%})"
        for share, limit, text in named
        if share is not None and share > limit
    ]
    return {"noisy": bool(reasons), "reasons": reasons, "median_spread": _rounded(spread)}


def _ticks(stat: Path) -> list[int] | None:
    """Time all cores spent in each state since the start, in clock ticks; guests are part of user and nice."""
    try:
        return [int(word) for word in stat.read_text("utf-8").splitlines()[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return None


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)
