"""What a process may ask its system about itself: memory, waiting, cores, limits. None: the system does not say."""

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

STATUS = Path("/proc/self/status")


def peak_rss_bytes() -> int:
    """Largest resident set of this process so far, in bytes, pages of mapped files included; 0: not known.

    Linux: VmHWM of /proc/self/status. `ru_maxrss` is not used there, because a child process starts with
    the value of the parent that forked it (a test shows it), and the parent may hold torch.
    """
    if STATUS.exists():
        for line in STATUS.read_text("utf-8", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def involuntary_switches() -> int | None:
    """How often the system took a core from this process."""
    return None if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def limit_memory(n_bytes: int) -> None:
    """Bound the address space of this process and let it write no core file, where the system can."""
    if resource is None or sys.platform != "linux":  # macOS heeds no limit of the address space
        return
    for what, limit in ((resource.RLIMIT_AS, n_bytes), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(what)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (limit, hard))


def memory_bytes() -> int | None:
    """Memory of the machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def clock_ticks_per_s() -> int:
    """Ticks a second of the times in /proc; 100 where the system does not say."""
    return os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def load_average() -> float | None:
    """Mean number of runnable processes over the last minute."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def cores_to_pin() -> set[int] | None:
    """The cores this process may be kept on; None where the system keeps no process on a core."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else None


def pin_to(cores: set[int]) -> None:
    """Keep this process, and every thread it starts from here on, on `cores`, a part of `cores_to_pin()`."""
    os.sched_setaffinity(0, cores)


def kill_group(process: "subprocess.Popen[bytes]") -> None:
    """Kill the process, which leads a session of its own, and all it started; on Windows the process alone.

    Raises ProcessLookupError and PermissionError where there is no such group any more.
    """
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def is_alive(pid: int, started: str | None = None) -> bool:
    """Whether a process of this machine runs: the same one, where the system says when it began (`started_at`)."""
    now = started_at(pid)
    if now is not None and started is not None:
        return now == started
    if sys.platform == "win32":  # where a signal 0 would end it
        return _runs_on_windows(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def started_at(pid: int) -> str | None:
    """When a process began, in a form of this system; None where it does not say or there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()[19]  # field 22 of proc(5), counted behind the name


def _runs_on_windows(pid: int) -> bool:
    import ctypes

    limited, still_active = 0x1000, 259
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    handle, code = kernel.OpenProcess(limited, False, pid), ctypes.c_ulong()
    if not handle:
        return False
    kernel.GetExitCodeProcess(handle, ctypes.byref(code))
    kernel.CloseHandle(handle)
    return code.value == still_active


def signal_name(number: int) -> str:
    """`SIGKILL`; `signal 99` for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
