"""Choosing tokens: the softmax formula is the oracle."""

import numpy as np
import pytest

from edgeft.errors import UsageError
from edgeft.runtime.sampling import sampler

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.25, 0.05], np.float32))


def draw(n: int, **options: float) -> np.ndarray:
    """Share of each token among `n` draws."""
    pick = sampler(**options)
    return np.bincount([pick(LOGITS) for _ in range(n)], minlength=5) / n


def test_greedy_takes_the_first_of_the_largest() -> None:
    assert sampler()(np.array([1.0, 3.0, 3.0, 2.0])) == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 1.0}, [0.1, 0.4, 0.2, 0.25, 0.05]),
        # Probabilities to the power 1/temperature, normalized: 0.01, 0.16, 0.04, 0.0625, 0.0025 over 0.275.
        ({"temperature": 0.5}, [0.0364, 0.5818, 0.1455, 0.2273, 0.0091]),
        ({"temperature": 1.0, "top_k": 2}, [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]),
        ({"temperature": 1.0, "top_k": 1}, [0, 1, 0, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.3}, [0, 1, 0, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.7}, [0, 0.4 / 0.85, 0.2 / 0.85, 0.25 / 0.85, 0]),
        ({"temperature": 1.0, "top_k": 3, "top_p": 0.5}, [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]),
    ],
)
def test_draws_follow_the_distribution(options: dict[str, float], expected: list[float]) -> None:
    shares = draw(4000, seed=7, **options)
    assert shares == pytest.approx(expected, abs=0.03)
    assert (shares[np.array(expected) == 0] == 0).all()


def test_seed_decides_the_draws() -> None:
    first, again, other = (sampler(temperature=1.0, seed=seed) for seed in (5, 5, 6))
    draws = [[pick(LOGITS) for _ in range(50)] for pick in (first, again, other)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


@pytest.mark.parametrize("options", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_senseless_values_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="need temperature >= 0"):
        sampler(**options)
