"""How many cores there are, and how many of them this process may use."""

import os
import re
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def usable_cores() -> int:
    """Logical cores this process may run on; all of the machine's where the system cannot bind processes."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def physical_cores() -> int:
    """Cores without their second threads, at most what this process may use; half of all where nothing is known."""
    cores = _distinct_cores(CPUINFO)
    return min(cores, usable_cores()) if cores else max(1, usable_cores() // 2)


def _distinct_cores(cpuinfo: Path) -> int:
    """Pairs of socket and core in `cpuinfo`; 0 where it does not tell (ARM, other systems)."""
    try:
        blocks = cpuinfo.read_text("utf-8", errors="replace").split("\n\n")
    except OSError:
        return 0
    known = [dict(re.findall(r"^(physical id|core id)\s*:\s*(\d+)$", block, re.MULTILINE)) for block in blocks]
    return len({tuple(sorted(block.items())) for block in known if "core id" in block})
