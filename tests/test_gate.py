"""Budgets and verdicts: every operator and unit, the edges, and what is not measured."""

import math
from dataclasses import asdict
from typing import Any, get_args

import pytest

from edgeft.bench.budgets import TASK_METRICS, known_gate_metrics, parse_budget
from edgeft.bench.file import BenchSettings
from edgeft.bench.gate import Measured, collect, judge
from edgeft.bench.metrics import known_metrics, score_texts
from edgeft.errors import UsageError
from edgeft.sections import Bench, TaskMetric


@pytest.mark.parametrize(
    ("metric", "text", "op", "limit"),
    [
        ("exact_match", ">= 0.90", ">=", 0.9),
        ("exact_match", ">=90%", ">=", 0.9),
        ("exact_match_drop", "<= 1 %", "<=", 0.01),
        ("kl_mean", "< 2e-2", "<", 0.02),
        ("greedy_prefix", " > .5 ", ">", 0.5),
        ("size_bytes", "<= 8MB", "<=", 8e6),
        ("size_bytes", "<= 8 MiB", "<=", 8 * 2**20),
        ("size_bytes", "== 1234", "==", 1234),
        ("peak_rss_bytes", "<= 1.5GB", "<=", 1.5e9),
        ("peak_rss_bytes", "<= 64KiB", "<=", 65536),
        ("ttft_ms_p95", "<= 120", "<=", 120),
        ("ttft_ms_p95", "<= 0.12s", "<=", 120),
        ("itl_ms_p50", "<= 900us", "<=", 0.9),
        ("decode_tokens_per_s", ">= 50 tokens/s", ">=", 50),
    ],
)
def test_parse(metric: str, text: str, op: str, limit: float) -> None:
    budget = parse_budget(metric, text)
    assert (budget.op, budget.limit) == (op, pytest.approx(limit, rel=1e-15))


@pytest.mark.parametrize(
    ("metric", "text", "message"),
    [
        (
            "exact_mach",
            ">= 0.9",
            r"gate.exact_mach: unknown metric; did you mean exact_match\? known: exact_match",
        ),
        ("zzz", ">= 0.9", r"gate.zzz: unknown metric; known: exact_match"),
        ("exact_match", "0.9", r"gate.exact_match: '0.9' is not a budget; write one like"),
        ("exact_match", ">= high", "is not a budget"),
        ("exact_match", ">= nan", "is not a budget"),
        ("exact_match", ">= 1e999", "is not a budget"),
        ("exact_match", ">= 0.9 or so", "is not a budget"),
        ("exact_match", "=> 0.9", "is not a budget"),
        ("exact_match", ">= 8MB", r"unknown unit 'MB' for this metric; use %"),
        ("size_bytes", "<= 8mb", r"unknown unit 'mb' for this metric; use B, KB, MB, GB, KiB, MiB, GiB"),
        ("ttft_ms_p95", "<= 8%", "use us, ms, s"),
        ("kl_mean", "<= 2%", "use no unit"),
    ],
)
def test_bad_budget(metric: str, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_budget(metric, text)


@pytest.mark.parametrize(
    ("text", "value", "ok", "margin"),
    [
        (">= 0.9", 0.9, True, 0.0),
        (">= 0.9", 0.89, False, -0.01),
        ("> 0.9", 0.9, False, 0.0),
        ("> 0.9", 0.91, True, 0.01),
        ("<= 0.01", 0.95 - 0.94, True, 0.0),  # 0.010000000000000009 in binary
        ("<= 0.01", 0.02, False, -0.01),
        ("< 0.01", 0.95 - 0.94, False, 0.0),
        ("< 0.01", -0.02, True, 0.03),
        ("== 1", 1.0, True, 0.0),
        ("== 1", 0.9, False, -0.1),
    ],
)
def test_operators_at_the_edge(text: str, value: float, ok: bool, margin: float) -> None:
    (row,) = judge({"exact_match_drop": text}, {"exact_match_drop": Measured(value)}).rows
    assert row.ok is ok
    assert row.margin == pytest.approx(margin, abs=1e-12)


def test_margin_in_percent_of_the_limit() -> None:
    measured = {"size_bytes": Measured(10e6), "exact_match_drop": Measured(0.0)}
    verdict = judge({"size_bytes": "<= 8MB", "exact_match_drop": "<= 0"}, measured)
    assert [(row.ok, row.margin, row.margin_percent) for row in verdict.rows] == [
        (False, -2e6, pytest.approx(-25)),
        (True, 0, None),
    ]
    assert not verdict.passed


@pytest.mark.parametrize(
    ("measured", "note"),
    [
        ({}, "not measured"),
        ({"kl_mean": Measured(math.nan)}, "measured nan"),
        ({"kl_mean": Measured(math.inf)}, "inf"),
    ],
)
def test_what_is_not_measured_fails(measured: dict[str, Measured], note: str) -> None:
    verdict = judge({"kl_mean": "<= 0.02"}, measured)
    assert not verdict.passed
    assert note in verdict.rows[0].note
    assert verdict.to_json()["rows"][0]["measured"] is None


def test_noise_is_told_but_does_not_change_the_verdict() -> None:
    measured = {"exact_match": Measured(0.92, 300, (0.884, 0.946))}
    passed = judge({"exact_match": ">= 0.90"}, measured)
    assert passed.passed
    assert passed.rows[0].note == "the limit lies inside the 95 % interval of 300 examples"
    assert judge({"exact_match": ">= 0.88"}, measured).rows[0].note == ""


def test_no_budgets_pass() -> None:
    assert judge({}, {}).passed


def scores(predictions: list[str], references: list[str]) -> list[dict[str, Any]]:
    return [s.to_json() for s in score_texts(["exact_match", "json_field_f1"], predictions, references)]


def test_collect_pairs_the_file_with_the_torch_model() -> None:
    references = [f'{{"a": {i}}}' for i in range(100)]
    torch_answers = [*references[:95], *["x"] * 5]
    file_answers = [*references[:90], *["x"] * 10]
    bench = {
        "metrics": {"exact_match": 0.90, "json_field_f1": 0.5, "size_bytes": 7e6},
        "accuracy": {"scores": scores(file_answers, references)},
    }
    baseline = {"forms": [{"form": "merged", "scores": scores(torch_answers, references)}]}
    measured = collect(bench, baseline, {"kl_mean": 0.01})
    assert measured["size_bytes"] == Measured(7e6)
    assert measured["kl_mean"] == Measured(0.01)
    assert measured["exact_match"].n == 100
    drop = measured["exact_match_drop"]
    assert drop.value == pytest.approx(0.05)
    # 5 of 100 pairs got worse: the Wilson interval of 5/100 is 0.0215..0.1118; the bootstrap is near it
    assert drop.ci95 == pytest.approx((0.01, 0.10), abs=0.011)
    f1 = [2 * 95 / (95 + 100), 2 * 90 / (90 + 100)]
    assert measured["json_field_f1_drop"].value == pytest.approx(f1[0] - f1[1])
    assert measured["json_field_f1_drop"].ci95 is None
    assert "exact_match_drop" not in collect(bench, None, None)


def test_no_drop_between_different_examples() -> None:
    references = ["a", "b"]
    bench = {"metrics": {}, "accuracy": {"scores": scores(references, references)}}
    baseline = {"forms": [{"form": "merged", "scores": scores(["a"], ["a"])}]}
    assert "exact_match_drop" not in collect(bench, baseline, None)


def test_names_agree_everywhere() -> None:
    assert known_metrics() == TASK_METRICS
    assert set(get_args(TaskMetric)) == set(TASK_METRICS) <= set(known_gate_metrics())


def test_a_device_without_recipe_has_the_same_defaults() -> None:
    defaults = Bench().model_dump()
    settings = asdict(BenchSettings())
    settings["latency"] = {name: settings["latency"][name] for name in defaults["latency"]}
    assert settings | {"metrics": list(settings["metrics"])} == {name: defaults[name] for name in settings}
