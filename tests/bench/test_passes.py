"""Work repeated for a time: by a clock that only the work moves."""

import pytest

from edgeft.bench.passes import pass_seconds


class Machine:
    """A pass takes `pass_s` of the processor's time, and `waits_s` more of all time."""

    def __init__(self, pass_s: float, waits_s: float) -> None:
        self.pass_s, self.waits_s = pass_s, waits_s
        self.own = self.wall = 0.0
        self.passes = 0

    def run(self) -> None:
        self.passes += 1
        self.own += self.pass_s
        self.wall += self.pass_s + self.waits_s


@pytest.mark.parametrize(
    ("pass_s", "waits_s", "passes"),
    [(0.25, 0.0, 4), (0.25, 0.25, 2), (100.0, 0.0, 2)],  # the first is not counted, the second made in any case
)
def test_passes_fill_a_time(pass_s: float, waits_s: float, passes: int) -> None:
    machine = Machine(pass_s, waits_s)
    times = pass_seconds(machine.run, 1.0, clock=lambda: machine.own, wall=lambda: machine.wall)
    assert machine.passes == passes
    assert times == [pass_s] * (passes - 1)
