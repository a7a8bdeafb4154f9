"""The machine a measurement was made on: without it numbers mean nothing. Its name is not kept."""

import contextlib
import platform
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from edgeft.errors import UsageError
from edgeft.machine.cores import usable_cores
from edgeft.machine.instruction_sets import hiding_switches, instruction_sets
from edgeft.machine.process import cores_to_pin, memory_bytes, pin_to

CPU = Path("/sys/devices/system/cpu")
# Module prefix of a runtime's backend -> the distribution whose version is reported.
BACKENDS = {"llama_cpp": "llama-cpp-python", "onnxruntime": "onnxruntime"}


def describe_host() -> dict[str, Any]:
    """Processor, cores this process may use, memory, system, Python, frequency governor, turbo; None: not known.

    Also the instruction sets of the processor (`edgeft.machine.instruction_sets`), the switches that hide some of them
    from torch, and what the libraries loaded in this process say of their kernels (`loaded_kernels`).
    """
    return {
        "cpu": _cpu_name(),
        "instruction_sets": list(instruction_sets()),
        "hiding_switches": hiding_switches(),
        "kernels": loaded_kernels(),
        "n_cores": usable_cores(),
        "memory_bytes": memory_bytes(),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "governor": _first_line(CPU / "cpu0/cpufreq/scaling_governor"),
        "turbo": _turbo(),
    }


def loaded_kernels() -> dict[str, str]:
    """{library: what its kernels were compiled with or choose} of torch and llama.cpp, once these run.

    onnxruntime cannot be asked: it takes the best kernel for what the processor has.
    """
    found = {}
    if (torch := sys.modules.get("torch")) is not None and hasattr(torch, "backends"):
        found["torch"] = str(torch.backends.cpu.get_cpu_capability())
    llama_build = sys.modules.get("edgeft.runtime.llama_build")
    if llama_build is not None and llama_build.start.cache_info().currsize:
        features = llama_build.features()
        found["llama.cpp"] = " ".join(name for name, number in features.items() if number)
    return found


def backend_versions() -> dict[str, str]:
    """{distribution: version} of the runtime libraries loaded in this process."""
    return versions(name for module, name in BACKENDS.items() if module in sys.modules)


def versions(distributions: Iterable[str]) -> dict[str, str]:
    """{distribution: version} of those that are installed."""
    found = {}
    for name in distributions:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def pin(cpus: Sequence[int]) -> None:
    """Keep this process, and every thread it starts from here on, on the cores `cpus`; none: leave it as it is.

    Raises UsageError for cores this process may not use, and where the system cannot pin.
    """
    if not cpus:
        return
    allowed = cores_to_pin()
    if allowed is None:
        raise UsageError("--cpus: this system cannot pin a process to cores; leave it out")
    if not set(cpus) <= allowed:
        asked, known = (",".join(map(str, sorted(some))) for some in (set(cpus) - allowed, allowed))
        raise UsageError(f"--cpus: this process may not use core {asked}; it may use {known}")
    pin_to(set(cpus))


def _turbo() -> bool | None:
    """Whether cores may run above their base frequency: `boost` of cpufreq, `no_turbo` of intel_pstate."""
    boost, no_turbo = _first_line(CPU / "cpufreq/boost"), _first_line(CPU / "intel_pstate/no_turbo")
    return boost == "1" if boost is not None else no_turbo == "0" if no_turbo is not None else None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text("utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "Model")) and ":" in line:
                return line.split(":", 1)[1].strip()
    board = _first_line(Path("/proc/device-tree/model"))
    return board or platform.processor() or platform.machine()


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text("utf-8").strip("\0\n ").splitlines()[0]
    except (OSError, IndexError, UnicodeDecodeError):
        return None
