"""Budgets and verdicts: every operator and unit, the edges, and what is not measured."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pytest

from edgeft.bench.baseline import Baseline, save_baseline
from edgeft.bench.budgets import BENCH_METRICS, TASK_METRICS, known_gate_metrics, parse_budget
from edgeft.bench.file import BenchSettings
from edgeft.bench.gate import Measured, Results, collect, judge, judge_results, read_results
from edgeft.bench.metrics import known_metrics, score_texts
from edgeft.bench.shares import paired_interval
from edgeft.errors import UsageError
from edgeft.sections import Bench, BenchMetric


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
        ("exact_match", ">= 0.9 or so", "unknown unit 'or' for this metric|is not a budget"),
        ("exact_match", "<= baselines", "is not a budget"),
        ("exact_match", "<= 0.9x", "unknown unit 'x' for this metric"),
        ("exact_match", "<= baseline * 2", "is not a budget"),
        ("exact_match", "<= baseline + 1MB", "unknown unit 'MB' for this metric"),
        ("exact_match", "<= -1x baseline", "is not a budget"),
        ("exact_match", "=> 0.9", "is not a budget; write '>= 0.9'"),
        ("ttft_ms_p95", "=< 90", "is not a budget; write '<= 90'"),
        ("exact_match", ">= 90", r"a share from 0 to 1, never 90; did you mean 0.9, or 90%\?"),
        ("Q8_0/exact_match", ">= 1.5", "a share from 0 to 1, never 1.5"),
        ("exact_match", "> -0.1", "a share from 0 to 1"),
        ("exact_match_drop", "<= 1.01", "a share from -1 to 1"),
        ("size_bytes", "<= -8MB", "never below 0"),
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


HERE = {"cpu": "A", "n_cores": 4, "os": "Linux 6.1.0 x86_64", "backend": {"llama-cpp-python": "0.3.36"}}
ELSEWHERE = HERE | {"cpu": "B"}
STORED = {"decode_tokens_per_s": 100.0, "ttft_ms_p95": 80.0, "kl_mean": 0.010, "exact_match": 0.90, "size_bytes": 8e6}

# The limits follow from STORED by hand: (metric, budget, measured, met, limit, words of the note).
AGAINST_A_BASELINE: list[tuple[str, str, float | None, bool, float, str]] = [
    ("decode_tokens_per_s", ">= 0.95x baseline", 96.0, True, 95.0, ""),
    ("decode_tokens_per_s", ">= 0.95x baseline", 95.0, True, 95.0, ""),
    ("decode_tokens_per_s", ">= 0.95x baseline", 94.9, False, 95.0, ""),
    ("decode_tokens_per_s", "> 95% of baseline", 95.0, False, 95.0, ""),
    ("decode_tokens_per_s", ">= baseline - 10 tokens/s", 91.0, True, 90.0, ""),
    ("decode_tokens_per_s", ">= baseline", 99.0, False, 100.0, ""),
    ("ttft_ms_p95", "<= 1.1x baseline", 88.0, True, 88.0, ""),
    ("ttft_ms_p95", "<= 110% baseline", 89.0, False, 88.0, ""),
    ("ttft_ms_p95", "<= baseline + 0.02s", 100.0, True, 100.0, ""),
    ("ttft_ms_p95", "<=baseline+500us", 80.6, False, 80.5, ""),
    ("kl_mean", "<= baseline + 0.005", 0.015, True, 0.015, ""),
    ("kl_mean", "<= baseline + 0.005", 0.016, False, 0.015, ""),
    ("exact_match", ">= baseline - 1%", 0.89, True, 0.89, ""),
    ("exact_match", ">= baseline - 1%", 0.88, False, 0.89, ""),
    ("exact_match", "== baseline", 0.90, True, 0.90, ""),
    ("size_bytes", "<= 1x baseline", 8e6, True, 8e6, ""),
    ("size_bytes", "<= baseline + 1MiB", 8e6 + 2**20 + 1, False, 8e6 + 2**20, ""),
    ("kl_mean", "<= baseline", None, False, 0.010, "not measured"),
    ("kl_p99", "<= baseline", 0.1, False, 0.0, "baseline.json has no kl_p99; save it again"),
    ("size_bytes", "<= 8MB", 7e6, True, 8e6, ""),
]  # fmt: skip


@pytest.mark.parametrize(("metric", "text", "value", "met", "limit", "note"), AGAINST_A_BASELINE)
def test_against_a_baseline(
    tmp_path: Path, metric: str, text: str, value: float | None, met: bool, limit: float, note: str
) -> None:
    path = tmp_path / "baseline.json"
    save_baseline(path, STORED, HERE, file="m.gguf")
    measured = {} if value is None else {metric: Measured(value)}
    (row,) = judge({metric: text}, measured, Baseline.read(path, HERE)).rows
    assert row.ok is met
    assert row.limit == pytest.approx(limit, rel=1e-12)
    assert note in row.note
    if value is not None and not note:
        assert abs(row.margin or 0) == pytest.approx(abs(value - limit), abs=1e-9)


@pytest.mark.parametrize(
    ("metric", "value", "met"),
    [
        ("decode_tokens_per_s", 1000.0, False),
        ("ttft_ms_p95", 1.0, False),
        ("kl_mean", 0.01, True),
        ("size_bytes", 8e6, True),
        ("exact_match", 0.9, True),
    ],
)
def test_a_baseline_of_another_machine_is_refused_for_speed_only(
    tmp_path: Path, metric: str, value: float, met: bool
) -> None:
    path = tmp_path / "baseline.json"
    save_baseline(path, STORED, ELSEWHERE, file="m.gguf")
    (row,) = judge({metric: ">= 1x baseline"}, {metric: Measured(value)}, Baseline.read(path, HERE)).rows
    assert row.ok is met
    assert ("of another machine (B, instruction sets not recorded, 4 cores, Linux x86_64" in row.note) is not met


def test_a_budget_against_no_baseline() -> None:
    with pytest.raises(UsageError, match="needs a baseline; give one with --baseline NAME"):
        judge({"kl_mean": "<= baseline"}, {"kl_mean": Measured(0.01)})


def test_any_measured_quantity_and_any_file() -> None:
    measured = {"queue_wait_ms": Measured(7.0), "nano-Q4_K_M/kl_mean": Measured(0.03), "zest": Measured(2.0)}
    budgets = {"queue_wait_ms": "<= 0.01s", "nano-Q4_K_M/kl_mean": "<= 0.02", "zest": ">= 2"}
    assert [row.ok for row in judge(budgets, measured).rows] == [True, False, True]
    with pytest.raises(UsageError, match=r"gate\.zeal: unknown metric"):
        judge({"zeal": ">= 2"}, measured)


def test_zero_samples_and_a_run_that_died_fail() -> None:
    verdict = judge({"exact_match": ">= 0"}, {"exact_match": Measured(1.0, n=0, ci95=(0.0, 1.0))})
    assert (verdict.passed, verdict.rows[0].note) == (False, "measured on zero samples")
    died = Results("m.gguf", {"size_bytes": Measured(1.0)}, HERE, "the runtime was killed by SIGSEGV")
    verdict = judge_results(died, {"size_bytes": "<= 8MB"})
    assert not verdict.passed
    assert verdict.rows[0].note == "the run died midway: the runtime was killed by SIGSEGV"


def test_results_of_each_file_of_a_run(tmp_path: Path) -> None:
    for stage in ("bench", "parity", "export"):
        (tmp_path / stage).mkdir()
    (tmp_path / "bench" / "bench.json").write_text('{"file": "a.gguf", "metrics": {"ttft_ms_p50": 3}}')
    (tmp_path / "parity" / "parity.json").write_text('{"rows": [{"form": "a-Q8_0", "ok": true, "kl_mean": 0.5}]}')
    files = [{"file": "a-Q8_0.gguf", "bytes": 9}, {"file": "int4/model.onnx", "bytes": 7}]
    (tmp_path / "export" / "files.json").write_text(json.dumps(files))
    others = [{"file": "int4/model.onnx", "metrics": {"exact_match": 1}}]
    (tmp_path / "bench" / "others.json").write_text(json.dumps(others))
    measured = read_results(tmp_path).measured
    assert measured == {
        "ttft_ms_p50": Measured(3.0), "a/ttft_ms_p50": Measured(3.0),
        "a-Q8_0/kl_mean": Measured(0.5), "a-Q8_0/size_bytes": Measured(9.0),
        "int4/exact_match": Measured(1.0), "int4/size_bytes": Measured(7.0),
    }  # fmt: skip


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
    # 90 pairs both right, 5 only torch, 5 neither: Newcombe's interval with the Wilson ones of 0.95 and 0.90
    assert drop.ci95 == pytest.approx(paired_interval(90, 5, 0, 5))
    f1 = [2 * 95 / (95 + 100), 2 * 90 / (90 + 100)]
    assert measured["json_field_f1_drop"].value == pytest.approx(f1[0] - f1[1])
    assert measured["json_field_f1_drop"].ci95 is None
    assert "exact_match_drop" not in collect(bench, None, None)


@pytest.mark.parametrize(
    ("only_torch", "only_file", "budget", "ok", "noise"),
    [
        (4, 0, "<= 0.01", True, True),  # 4 of 300 are 0.0133: one example more than the budget
        (3, 0, "<= 0.01", True, True),  # and one less: no more certain
        (6, 0, "<= 0.01", True, True),
        (12, 0, "<= 0.01", False, False),  # 0.04: the interval begins above 0.01
        (40, 10, "<= 0.01", False, False),
        (0, 0, "<= 0.01", True, True),  # none of 300: still up to 0.0126
        (0, 12, "<= 0.01", True, False),  # the file is better
        (4, 0, "<= 0.05", True, False),
        (4, 0, ">= 0.01", True, False),  # only an upper limit is judged by the interval
    ],
)
def test_a_drop_is_judged_by_its_paired_interval(
    only_torch: int, only_file: int, budget: str, ok: bool, noise: bool
) -> None:
    """The rule by hand: Newcombe's interval (`shares.paired_interval`, tested by his worked examples)."""
    both = 270 - only_torch - only_file
    outcomes = [(1.0, 1.0)] * both + [(1.0, 0.0)] * only_torch + [(0.0, 1.0)] * only_file + [(0.0, 0.0)] * 30
    of = ({"metric": "exact_match", "interval": "wilson", "value": sum(side) / 300, "n": 300, "ci95": (0, 1),
           "outcomes": list(side)} for side in zip(*outcomes, strict=True))  # fmt: skip
    torch_score, file_score = of
    baseline = {"forms": [{"form": "merged", "scores": [torch_score]}]}
    measured = collect({"metrics": {}, "accuracy": {"scores": [file_score]}}, baseline, None)
    (row,) = judge({"exact_match_drop": budget}, measured).rows
    low, high = paired_interval(both, only_torch, only_file, 30)
    assert row.ci95 == pytest.approx((low, high))
    assert (row.ok, row.within_noise) == (ok, noise)
    limit = row.limit
    if "<" in budget:
        assert row.ok is (low <= limit)
        assert row.within_noise is (low <= limit < high)
    assert ("within noise" in row.note) is noise


@pytest.mark.parametrize(
    ("only_file", "only_classical", "budget", "ok", "noise"),
    [
        (40, 0, ">= 0", True, False),  # far better than TF-IDF
        (0, 0, ">= 0", True, True),
        (0, 4, ">= 0", True, True),  # 0.0133 behind: these examples cannot say so
        (0, 12, ">= 0", False, False),  # the whole interval lies below
        (0, 12, ">= -0.02", True, True),
        (3, 40, ">= -2 %", False, False),
    ],
)
def test_a_gain_over_tf_idf_is_judged_by_its_paired_interval(
    only_file: int, only_classical: int, budget: str, ok: bool, noise: bool
) -> None:
    """As the drop, with the file first."""
    both = 250 - only_file - only_classical
    file = [1.0] * (both + only_file) + [0.0] * (300 - both - only_file)
    classical = [1.0] * both + [0.0] * only_file + [1.0] * only_classical + [0.0] * 50

    def score(outcomes: list[float]) -> dict[str, Any]:
        return {"metric": "label_accuracy", "interval": "wilson", "value": sum(outcomes) / 300, "n": 300,
                "ci95": (0, 1), "outcomes": outcomes}  # fmt: skip

    bench = {"metrics": {}, "accuracy": {"scores": [score(file)]}}
    measured = collect(bench, {"forms": [{"form": "classical", "scores": [score(classical)]}]}, None)
    assert set(measured) == {"label_accuracy", "label_accuracy_gain"}
    gain = measured["label_accuracy_gain"]
    assert gain.value == pytest.approx((only_file - only_classical) / 300)
    assert gain.ci95 == pytest.approx(paired_interval(both, only_file, only_classical, 50), abs=1e-9)
    verdict = judge({"label_accuracy_gain": budget}, measured)
    assert (verdict.rows[0].ok, verdict.rows[0].within_noise) == (ok, noise)
    assert verdict.rows[0].asks_for_accuracy


def test_no_drop_between_different_examples() -> None:
    references = ["a", "b"]
    bench = {"metrics": {}, "accuracy": {"scores": scores(references, references)}}
    baseline = {"forms": [{"form": "merged", "scores": scores(["a"], ["a"])}]}
    assert "exact_match_drop" not in collect(bench, baseline, None)


def test_names_agree_everywhere() -> None:
    assert known_metrics() == TASK_METRICS
    assert get_args(BenchMetric) == (*TASK_METRICS, *BENCH_METRICS)
    assert set(get_args(BenchMetric)) <= set(known_gate_metrics())


def test_a_device_without_recipe_has_the_same_defaults() -> None:
    defaults = Bench().model_dump()
    settings = asdict(BenchSettings())
    settings["latency"] = {name: settings["latency"][name] for name in defaults["latency"]}
    lists = {name: list(settings[name]) for name in ("metrics", "slice_by")}
    assert settings | lists == {name: defaults[name] for name in settings}
