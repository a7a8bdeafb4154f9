"""Axes of a chart: where a value lies, and the round numbers written beside it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

STEPS = (1, 2, 5, 10)
MOST = 6  # ticks that do not crowd


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high`, linear or by powers; `write` makes the text of a tick."""

    label: str
    low: float
    high: float
    write: Callable[[float], str]
    log: bool = False

    def place(self, value: float) -> float:
        """0 at `low`, 1 at `high`; beyond them where `value` is."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values within the axis, about five."""
        return _powers(self.low, self.high) if self.log else _multiples(self.low, self.high)


def around(
    label: str,
    values: Sequence[float],
    write: Callable[[float], str],
    *,
    log: bool = False,
    floor: float | None = None,
    roof: float | None = None,
) -> Axis:
    """An axis with room around `values`, not below `floor` nor above `roof`. Logarithmic ones need positive values."""
    low, high = min(values), max(values)
    if log:
        room = max((high / low) ** 0.12, 1.15)
        return Axis(label, low / room, high * room, write, log=True)
    room = (high - low) * 0.12 or abs(high) * 0.1 or 1.0
    low = low - room if floor is None else max(floor, low - room)
    high = high + room if roof is None else min(roof, high + room)
    return Axis(label, low, high if high > low else low + room, write)


def _multiples(low: float, high: float) -> list[float]:
    raw = (high - low) / 5
    power = 10 ** math.floor(math.log10(raw))
    step = next(each * power for each in STEPS if each * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [place * step for place in range(first, last + 1)]


def _powers(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten; of those only the powers, or every few of them, where there would be many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [step * 10.0**power for power in powers for step in STEPS[:3]]
    inside = [tick for tick in fine if low * 0.999 <= tick <= high * 1.001]
    if len(inside) <= MOST:
        return inside
    whole = [10.0**power for power in powers if low * 0.999 <= 10.0**power <= high * 1.001]
    return whole[:: -(-len(whole) // MOST)]
