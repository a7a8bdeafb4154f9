"""Energy a measurement took, where the machine counts it: RAPL for processors, NVML for NVIDIA GPUs.

Counters are of whole packages: whatever else runs on them is in the number.
RAPL: https://www.kernel.org/doc/html/latest/power/powercap/powercap.html (`energy_uj` wraps at
`max_energy_range_uj`). NVML: nvmlDeviceGetTotalEnergyConsumption, millijoules since the driver was loaded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Counter:
    """`read` gives microjoules; it starts again from 0 after `wraps_at` (None: never)."""

    name: str
    read: Callable[[], int]
    wraps_at: int | None


class Meter:
    """Sums what the counters count from its making on; `tick` must come more often than they wrap (minutes)."""

    def __init__(self, counters: list[Counter], absent: str) -> None:
        self.counters, self.absent = counters, absent
        self._last = [counter.read() for counter in counters]
        self._used_uj = 0

    def tick(self) -> None:
        """Add what was used since the last tick."""
        for place, counter in enumerate(self.counters):
            now = counter.read()
            used = now - self._last[place]
            self._used_uj += used if used >= 0 else used + (counter.wraps_at or 0)
            self._last[place] = now

    def to_json(self) -> dict[str, Any]:
        """`joules` so far (None: nothing is counted), `sources` by name, and why those `absent` are."""
        joules = self._used_uj / 1e6 if self.counters else None
        return {"joules": joules, "sources": [counter.name for counter in self.counters], "absent": self.absent}


def meter(*, gpu: bool, powercap: Path = POWERCAP) -> Meter:
    """A meter of the processor's counters, and with `gpu` of the graphics cards' as well."""
    counters, absent = _rapl(powercap)
    if gpu:
        cards, why = _nvml()
        counters, absent = counters + cards, "; ".join(filter(None, (absent, why)))
    return Meter(counters, absent)


def _rapl(powercap: Path) -> tuple[list[Counter], str]:
    """The packages' counters; the zones inside a package are parts of it and left out."""
    counters = []
    for zone in sorted(powercap.glob("*-rapl:*")):
        try:
            name = (zone / "name").read_text("utf-8").strip()
            if not name.startswith("package"):
                continue
            range_uj = int((zone / "max_energy_range_uj").read_text("utf-8"))
            counter = Counter(f"RAPL {name}", _reader(zone / "energy_uj"), range_uj)
            counter.read()
        except PermissionError:
            return [], f"RAPL: {zone.name} may be read by root only"
        except (OSError, ValueError):
            continue
        counters.append(counter)
    return counters, "" if counters else f"RAPL: no package counters under {powercap}"


def _reader(path: Path) -> Callable[[], int]:
    return lambda: int(path.read_text("utf-8"))


def _nvml() -> tuple[list[Counter], str]:
    try:
        import pynvml
    except ModuleNotFoundError:
        return [], "NVML: the Python package pynvml is not installed"
    try:
        pynvml.nvmlInit()
        cards = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        counters = [Counter(f"NVML GPU {i}", _card_reader(pynvml, card), None) for i, card in enumerate(cards)]
        for counter in counters:
            counter.read()
    except pynvml.NVMLError as error:
        return [], f"NVML: {error}"
    return counters, "" if counters else "NVML: no GPU"


def _card_reader(pynvml: Any, card: Any) -> Callable[[], int]:
    return lambda: int(pynvml.nvmlDeviceGetTotalEnergyConsumption(card)) * 1000
