"""The planner against a search through every mix."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from edgeft.errors import ArtifactError, UsageError
from edgeft.quant import planner
from edgeft.quant.ggml import GgmlType
from edgeft.quant.planner import Option, plan_mix, read_plan, tensor_bytes, write_plan

KINDS = ("Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")


def options_of(seed: int, n_tensors: int = 6) -> dict[str, list[Option]]:
    """Tensors of random sizes; divergences fall with bits, but not for all: some options are never worth taking."""
    source = np.random.default_rng(seed)
    options = {}
    for number in range(n_tensors):
        shape = (int(source.integers(1, 9)) * 32, 256)
        scale = float(np.exp(source.normal(-7, 2)))
        options[f"blk.{number}.ffn_up.weight"] = [
            Option(kind, tensor_bytes(GgmlType[kind], shape), scale * 4.0**-bits * float(source.uniform(0.3, 3)))
            for bits, kind in enumerate(KINDS)
        ]
    return options


def every_mix(options: dict[str, list[Option]]) -> list[tuple[int, float]]:
    """(bytes, divergence) of every combination."""
    return [
        (sum(option.n_bytes for option in mix), math.fsum(option.divergence for option in mix))
        for mix in itertools.product(*options.values())
    ]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.0, 0.13, 0.4, 0.8, 1.0])
def test_the_mix_is_the_best_of_all_within_the_bytes(seed: int, share: float) -> None:
    options = options_of(seed)
    mixes = every_mix(options)
    sizes = [n_bytes for n_bytes, _ in mixes]
    target = int(min(sizes) + share * (max(sizes) - min(sizes)))
    plan = plan_mix(options, target_bytes=target)
    assert plan.n_bytes <= target
    assert plan.divergence == pytest.approx(min(kl for n_bytes, kl in mixes if n_bytes <= target), rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_mix_is_the_smallest_of_all_within_the_divergence(seed: int) -> None:
    options = options_of(seed)
    mixes = every_mix(options)
    limit = float(np.quantile([kl for _, kl in mixes], 0.2))
    plan = plan_mix(options, max_kl=limit)
    assert plan.divergence <= limit
    assert plan.n_bytes == min(n_bytes for n_bytes, kl in mixes if kl <= limit)


def test_coarse_units_stay_within_the_bytes_and_near_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    options = options_of(7)
    mixes = every_mix(options)
    target = int(np.median([n_bytes for n_bytes, _ in mixes]))
    monkeypatch.setattr(planner, "MAX_UNITS", 200)
    plan = plan_mix(options, target_bytes=target)
    best = min(kl for n_bytes, kl in mixes if n_bytes <= target)
    assert plan.n_bytes <= target
    assert best <= plan.divergence <= 1.25 * best


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "either target_bytes or max_kl"),
        ({"target_bytes": 1, "max_kl": 1.0}, "either target_bytes or max_kl"),
        ({"target_bytes": 1000}, r"target_bytes 1,000: the smallest mix of these types has [\d,]+; raise it"),
        ({"max_kl": 1e-12}, "max_kl 1e-12: the best mix of these types comes to .*; raise it"),
    ],
)
def test_what_cannot_be_planned_is_refused(limits: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_mix(options_of(0), **limits)  # type: ignore[arg-type]


def test_a_plan_is_read_back_and_checked(tmp_path: Path) -> None:
    shapes = {f"blk.{n}.ffn_up.weight": (64, 256) for n in range(3)}
    options = {
        name: [Option(kind, tensor_bytes(GgmlType[kind], shape), 1 / (n + 1)) for n, kind in enumerate(KINDS)]
        for name, shape in shapes.items()
    }
    plan = plan_mix(options, target_bytes=40_000)
    path = tmp_path / "mix.json"
    write_plan(path, plan)
    assert read_plan(path, shapes) == plan
    assert set(plan.types) == set(shapes)
    assert "nats a token" in plan.table()

    with pytest.raises(ArtifactError, match=r"made for another model: blk\.0.*plan again"):
        read_plan(path, shapes | {"blk.0.ffn_up.weight": (64, 512)})
    with pytest.raises(ArtifactError, match="made for another model"):
        read_plan(path, {})
    content = json.loads(path.read_text())
    for damaged in ("{", json.dumps(content | {"format": 9}), json.dumps(content | {"tensors": {"a": {}}})):
        path.write_text(damaged)
        with pytest.raises(ArtifactError, match="plan again"):
            read_plan(path)
    with pytest.raises(ArtifactError, match="not a mix plan"):
        read_plan(tmp_path / "none.json")
