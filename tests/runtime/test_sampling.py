"""Choosing tokens: llama.cpp's own samplers are the oracle, and its greedy."""

import ctypes
from typing import Any

import llama_cpp
import numpy as np
import pytest

from edgeft.errors import RuntimeFault, UsageError
from edgeft.runtime.sampling import sampler

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.25, 0.05], np.float32))


def theirs(logits: np.ndarray, ids: list[int], chain: list[Any]) -> np.ndarray:
    """Probabilities (V,) behind a chain of llama.cpp's samplers that have accepted `ids`."""
    data = (llama_cpp.llama_token_data * len(logits))()
    for token, logit in enumerate(logits):
        data[token] = llama_cpp.llama_token_data(token, float(logit), 0.0)
    array = llama_cpp.llama_token_data_array(data, len(logits), -1, False)
    for each in [*chain, llama_cpp.llama_sampler_init_dist(1)]:
        for token in ids:
            llama_cpp.llama_sampler_accept(each, token)
        llama_cpp.llama_sampler_apply(each, ctypes.byref(array))
        llama_cpp.llama_sampler_free(each)
    found = np.zeros(len(logits))
    for at in range(array.size):
        found[array.data[at].id] = array.data[at].p
    return found / found.sum()


def chain(*, temperature: float, repeat_penalty: float = 1.0, repeat_last_n: int = 64, **cuts: Any) -> list[Any]:
    """llama.cpp's samplers in the order of its own programs."""
    return [
        llama_cpp.llama_sampler_init_penalties(len(LOGITS), repeat_last_n, repeat_penalty, 0.0, 0.0),
        llama_cpp.llama_sampler_init_top_k(cuts.get("top_k", 0)),
        llama_cpp.llama_sampler_init_top_p(cuts.get("top_p", 1.0), 1),
        llama_cpp.llama_sampler_init_min_p(cuts.get("min_p", 0.0), 1),
        llama_cpp.llama_sampler_init_temp(temperature),
    ]


def shares(n: int, ids: list[int], options: dict[str, Any]) -> np.ndarray:
    """Share of each token among `n` draws."""
    pick = sampler(seed=7, **options)
    return np.bincount([pick(LOGITS, ids) for _ in range(n)], minlength=len(LOGITS)) / n


def test_greedy_takes_the_first_of_the_largest() -> None:
    assert sampler()(np.array([1.0, 3.0, 3.0, 2.0])) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 1.0, "top_k": 2},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_k": 9},
        {"temperature": 1.0, "top_p": 0.3},
        {"temperature": 2.0, "top_p": 0.7},
        {"temperature": 1.0, "top_k": 3, "top_p": 0.5},
        {"temperature": 0.5, "min_p": 0.45},
        {"temperature": 2.0, "top_k": 4, "top_p": 0.95, "min_p": 0.3},
        {"temperature": 1.0, "repeat_penalty": 1.7},
        {"temperature": 1.0, "repeat_penalty": 0.8, "repeat_last_n": 2},
        {"temperature": 0.7, "repeat_penalty": 2.5, "top_k": 2},
    ],
)
def test_draws_follow_llama_cpp(options: dict[str, Any]) -> None:
    ids = [4, 1, 3, 3]
    expected = theirs(LOGITS, ids, chain(**options))
    found = shares(4000, ids, options)
    assert found == pytest.approx(expected, abs=0.03)
    assert (found[expected == 0] == 0).all()


def test_the_repeat_penalty_works_on_greedy() -> None:
    pick = sampler(repeat_penalty=3.0, repeat_last_n=2)
    logits = np.array([2.0, 1.9, -1.0, -1.1], np.float32)
    assert [pick(logits, ids) for ids in ([], [0], [0, 1], [0, 3, 3])] == [0, 1, 0, 0]
    assert (logits == np.array([2.0, 1.9, -1.0, -1.1], np.float32)).all()


def test_seed_decides_the_draws() -> None:
    first, again, other = (sampler(temperature=1.0, seed=seed) for seed in (5, 5, 6))
    draws = [[pick(LOGITS) for _ in range(50)] for pick in (first, again, other)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": 2.0},
        {"repeat_penalty": 0.0},
        {"repeat_last_n": -1},
        {"seed": -1},
    ],
)
def test_senseless_values_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"sampling: {next(iter(options))} .*must be"):
        sampler(**options)


def test_logits_that_are_not_numbers_are_told() -> None:
    with pytest.raises(RuntimeFault, match="not finite"):
        sampler(temperature=1.0)(np.full(4, np.nan, np.float32))
