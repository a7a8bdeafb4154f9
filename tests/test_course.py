"""What the report says of a course of validation losses."""

import math

import pytest

from edgeft.report.course import training_advice


def falling(n: int, rate: float, floor: float = 0.0) -> list[float]:
    """An exponential decay to `floor`."""
    return [floor + math.exp(-rate * i) for i in range(n)]


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (falling(12, 0.3), "under-trained"),  # exp(-0.9) = 0.41 of what it was three evaluations before
        (falling(4, 0.2), "under-trained"),
        (falling(12, 0.3, floor=1.0), ""),  # 1.037 after 1.12: a fall of 6 %... of which little is left
        (falling(12, 1.5, floor=0.5), ""),  # flat for long
        (falling(12, 2.0), ""),  # still halving, far below what matters
        ([1.0, 0.5, 0.4, 0.5, 0.6, 0.7], "overfitted: the validation loss was lowest at evaluation 3 of 6"),
        ([1.0, 0.5, 0.4, 0.41, 0.42, 0.43], ""),  # 7 % above the lowest
        ([1.0, 0.9, 0.8, 0.7, 0.4, 0.6], ""),  # one worse evaluation is no course
        ([0.9, 0.5, 0.2], ""),
        ([], ""),
    ],
)
def test_a_course_has_a_name(losses: list[float], said: str) -> None:
    advice = training_advice(losses)
    assert advice.startswith(said)
    assert bool(advice) is bool(said)
