"""The report: complete, without some of its parts, narrow enough, and safe to render."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.bench.gate import Measured, judge
from edgeft.errors import ArtifactError
from edgeft.report.axes import Axis
from edgeft.report.build import build_report
from edgeft.report.candidates import candidates
from edgeft.report.gather import gather
from edgeft.report.html import to_html
from edgeft.report.markdown import to_markdown
from edgeft.report.numbers import count, duration, in_unit, milliseconds, share, size, three
from edgeft.report.series import curve, distribution
from edgeft.report.terminal import failed_text, to_terminal, verdict_text
from tests.report_parts import METRICS, form, parts


def test_terminal_report_is_narrow_and_ends_with_the_verdict() -> None:
    text = to_terminal(build_report(parts()))
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[-1] == "FAIL: 2 of 4 budgets not met: size_bytes, kl_mean"
    said = [" ".join(line.split()) for line in text.splitlines()]
    for expected in (
        "fine-tuned file, Q4_K_M 20 0.950 [0.764, 0.991]",
        "base, zero-shot 20 0.000 [0.000, 0.161]",
        "base, zero-shot: first line only; 7 answers cut by the length limit",
        "fine-tuned file, Q4_K_M: home-assistant-Q4_K_M.gguf; 1 prompt longer",
        "E503 3 the same example in another split",
        "W501 1,200 exact duplicate",
        "training loss 3.800 → 1.100",
        "validation loss 1.250 → 1.250",
        "time 1.0 min",
        "training loss 1.900 → 1.200",
        "file Q4_K_M",
        "KL 0.0087 → 0.0035",
        "home-assistant-Q4_K_M.gguf * 4.32 MB",
        "time between tokens",
        "Q4_K_M (llama.cpp) 0.910 0.020 2.50 1.000 FAIL",
        "The first form that moved: Q4_K_M (llama.cpp): top-1 0.910 < 0.950",
        "The machine was busy (load 1.9 on 2 cores",
        "Some CPU @ 2 GHz, 2 threads; llama-cpp-python 0.3",
        "F16 13.0 MB 0.900 [0.699, 0.972] 167 12.0 ms - beaten",
        "Q4_K_M * 4.32 MB 0.950 [0.764, 0.991] 333 12.0 ms -",
        "exact_match 20 1 0 +0.050 [",
        "The file against F16",
        "The file and fine-tuned, torch have the same outcome on each of 20 examples",
        'expected {"tool": "lights", "room": 19}',
        "1 wrong answer of 20 by exact_match; all are here",
        "room 20 0.950 0 1 0 19 → (nothing) (1)",
        "den 8 0.875 [0.529, 0.978]",
        "No gap: fewer than two values have 10 examples",
    ):
        assert any(expected in line for line in said), expected


def test_a_long_table_is_cut_in_the_terminal_and_nowhere_else() -> None:
    given = parts()
    row = given["bench"]["accuracy"]["slices"][0]["rows"][0]
    given["bench"]["accuracy"]["slices"][0]["rows"] = [row | {"value": f"room {i}"} for i in range(50)]
    report = build_report(given)
    assert "room 19" in to_terminal(report)
    assert "room 20" not in to_terminal(report)
    assert "30 more rows in report.html" in to_terminal(report)
    assert "room 49" in to_markdown(report)


def test_verdict_rows_say_by_how_much() -> None:
    rows = [line.split() for line in verdict_text(parts()["verdict"]).splitlines()]
    assert ["pass", "exact_match", "0.950", ">=", "0.90", "+0.050", "(+6", "%)"] in rows
    assert ["FAIL", "size_bytes", "4.32", "MB", "<=", "4MB", "-320", "KB", "(-8", "%)"] in rows
    assert ["FAIL", "kl_mean", "-", "<=", "0.02", "-"] in rows
    text = verdict_text(parts()["verdict"])
    assert "exact_match [0.764, 0.991]: the limit lies inside the 95 % interval of 20" in text
    assert "kl_mean: not measured" in text


def test_an_error_shows_what_failed_only() -> None:
    lines = failed_text(parts()["verdict"]).splitlines()
    assert lines[0] == "FAIL: 2 of 4 budgets not met: size_bytes, kl_mean"
    assert [line.split()[1] for line in lines[2:4]] == ["size_bytes", "kl_mean"]
    assert lines[4:] == ["  - kl_mean: not measured"]


@pytest.mark.parametrize(("n_right", "warned"), [(18, False), (19, True), (20, True)])
def test_a_simpler_answer_as_good_is_pointed_out(n_right: int, warned: bool) -> None:
    given = parts()
    given["baseline"]["forms"][2] = form("classical", "TF-IDF + LinearSVC", n_right)
    text = " ".join(to_terminal(build_report(given)).split())
    value = f"{n_right / 20:.3f}"
    warning = f"Mind: TF-IDF + LinearSVC does as well as the fine-tuned file ({value}) on these examples"
    assert (warning in text) is warned


@pytest.mark.parametrize(
    ("budgets", "line"),
    [
        ({}, "PASS, but no accuracy budget is set: there are no budgets"),
        ({"kl_mean": "<= 1"}, "PASS, but no accuracy budget is set: 1 of 1 budgets met"),
        ({"json_valid": ">= 0.9"}, "PASS, but no accuracy budget is set: 1 of 1 budgets met"),
        ({"exact_match": ">= 0"}, "PASS, but no accuracy budget is set: 1 of 1 budgets met"),
        (
            {"exact_match_drop": "<= 0.01"},
            "PASS, but no accuracy budget is set: 1 of 1 budgets met, 1 of them within noise",
        ),
        ({"kl_mean": "<= 1", "exact_match": ">= 0.5"}, "PASS: 2 of 2 budgets met"),
        ({"Q8_0/exact_match": ">= 50%"}, "PASS: 1 of 1 budgets met"),
        ({"exact_match": ">= 0.7"}, "FAIL: 1 of 1 budgets not met: exact_match"),
    ],
)
def test_the_verdict_in_a_line(budgets: dict[str, str], line: str) -> None:
    measured = {
        "kl_mean": Measured(0.5), "json_valid": Measured(1.0), "exact_match": Measured(0.6, 10, (0.3, 0.8)),
        "Q8_0/exact_match": Measured(0.6), "exact_match_drop": Measured(0.02, 300, (0.0, 0.05)),
    }  # fmt: skip
    verdict = judge(budgets, measured).to_json()
    assert " ".join(verdict_text(verdict).split("\n\n")[-1].split()) == line
    report = build_report(parts() | {"verdict": verdict})
    assert ('<p class="badge pass">' in to_html(report)) is line.startswith("PASS:")


@pytest.mark.parametrize(("n_file", "n_classical", "told"), [(8, 19, True), (18, 19, False), (19, 8, False)])
def test_a_model_that_loses_to_something_simpler_is_told_first(n_file: int, n_classical: int, told: bool) -> None:
    given = parts()
    given["baseline"]["forms"][2] = form("classical", "TF-IDF + linear", n_classical)
    given["bench"]["accuracy"] = form("file", "file", n_file)
    given["data"]["test"] = {"examples": 20, "leaked": 3}
    report = build_report(given)
    words = "TF-IDF + linear beats the fine-tuned file: exact_match 0.950 against 0.400"
    assert any(words in text for text in report["warnings"]) is told
    terminal = " ".join(to_terminal(report).split())
    assert (terminal.count(words), terminal.count("The test is no test: 3 of its 20")) == (2 * told, 2)
    assert terminal.index("The test is no test") < terminal.index("Accuracy")
    assert [words[:30] in text for text in (to_markdown(report), to_html(report))] == [told, told]


def test_report_json_holds_no_raw_samples_and_is_json() -> None:
    report = build_report(parts())
    text = json.dumps(report, allow_nan=False)
    assert "outcomes" not in text
    assert "runs" not in report["latency"]
    assert report["accuracy"]["metrics"] == list(METRICS)
    assert [row["form"] for row in report["accuracy"]["rows"]] == ["file", "merged", "base_zero_shot", "classical"]
    curves = report["training"].pop("curves")
    assert (len(curves["loss"]), curves["eval_loss"]) == (30, [[30.0, 1.25]])
    assert report["training"] | {"seconds": 0} == {
        "steps": 30, "loss_first": pytest.approx(3.8), "loss_last": pytest.approx(1.1), "loss_steps_averaged": 3,
        "eval_loss_first": 1.25, "eval_loss_last": 1.25, "tokens": 3000, "seconds": 0,
        "advice": "",
    }  # fmt: skip


@pytest.mark.parametrize("missing", [*parts(), "everything"])
def test_a_part_may_be_missing(missing: str) -> None:
    some = {} if missing == "everything" else {name: part for name, part in parts().items() if name != missing}
    report = build_report(some)
    assert to_terminal(report)
    assert to_markdown(report).startswith("# ")


def test_markdown_cuts_nothing_and_starts_with_the_verdict() -> None:
    text = to_markdown(build_report(parts()))
    assert text.splitlines()[2] == "**FAIL: 2 of 4 budgets not met: size\\_bytes, kl\\_mean**"
    assert "cd" * 32 in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert "|---|---|---:|---|---:|" in tables


def test_text_from_outside_stays_text() -> None:
    hostile = copy.deepcopy(parts())
    hostile["recipe"]["ship"] = "<img src=x> | `x` *b*"
    text = to_markdown(build_report(hostile))
    assert "fine-tuned file, \\<img src=x\\> \\| \\`x\\` \\*b\\*" in text


def test_gather_reads_what_is_there(tmp_path: Path) -> None:
    given = parts()
    folders = {stage: tmp_path / stage for stage in ("data", "train", "merge", "export", "bench", "gate")}
    for folder in folders.values():
        folder.mkdir()
    (folders["data"] / "summary.json").write_text(json.dumps(given["data"]))
    findings = [{"code": row["code"], "what": row["what"]} for row in given["data_check"]]
    check = {"counts": {"W501": 1200, "E503": 3}, "findings": findings}
    (folders["data"] / "check.json").write_text(json.dumps(check))
    (folders["train"] / "log.jsonl").write_text("\n".join(map(json.dumps, given["train"])))
    (folders["merge"] / "provenance.json").write_text('{"base_sha256": "12"}')
    (folders["export"] / "files.json").write_text(
        '[{"file": "a.gguf", "ftype": "F16", "bytes": 9}, {"file": "int4/model.onnx", "format": "onnx", "bytes": 5}]'
    )
    manifest = {
        "key": "k1",
        "made_from": {"package gguf": "0.19", "recipe seed": 1},
        "files": {"a.gguf": {"bytes": 9, "sha256": "aa"}, "int4/model.onnx": {"bytes": 5, "sha256": "bb"}},
    }
    (folders["export"] / "manifest.json").write_text(json.dumps(manifest))
    (folders["bench"] / "bench.json").write_text(json.dumps(given["bench"]))
    found = gather(folders, {"name": "n", "ship": "F16"})
    assert found["data_check"] == given["data_check"]
    assert set(found) == {"recipe", "data", "data_check", "train", "files", "bench", "provenance", "settings"}
    assert found["train"] == given["train"]
    assert found["settings"] == {"seed": 1}
    assert [(f["sha256"], f["ships"]) for f in found["files"]] == [("aa", True), ("bb", False)]
    assert [f["ftype"] for f in found["files"]] == ["F16", "int4"]
    assert [f["ships"] for f in gather(folders, {})["files"]] == [False, True]
    assert found["provenance"] == {
        "base_sha256": "12",
        "packages": {"gguf": "0.19"},
        "artifacts": {"export": "k1"},
    }
    assert to_terminal(build_report(found))


def test_gather_names_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"bench.json: not JSON .* run the stage that makes it again"):
        gather({"bench": tmp_path}, {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (share(0.9533), "0.953"), (share(0.99967), "0.9997"), (share(1.0), "1.000"), (share(0.0), "0.000"),
        (size(512), "512 B"), (size(1000), "1.00 KB"), (size(6_912_345), "6.91 MB"), (size(-320_000), "-320 KB"),
        (milliseconds(12.34), "12.3 ms"), (milliseconds(0.25), "0.250 ms"), (milliseconds(1234.5), "1.23 s"),
        (duration(12.34), "12.3 s"), (duration(150), "2.5 min"), (duration(5400), "1.5 h"),
        (count(1234567), "1,234,567"),
        (three(0), "0.00"), (three(0.01234), "0.012"), (three(0.00012), "1.2e-04"), (three(153.4), "153"),
        (in_unit(0.5, "share"), "0.500"), (in_unit(2e6, "bytes"), "2.00 MB"), (in_unit(3, "ms"), "3.00 ms"),
        (in_unit(153.4, "tokens/s"), "153 tok/s"), (in_unit(0.0123, "number"), "0.012"),
    ],
)  # fmt: skip
def test_numbers(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.parametrize(
    ("rows", "front"),
    [
        # (share right, bytes, tokens/s or None, milliseconds to the answer)
        ([(0.9, 100, 10.0, 5.0), (0.9, 50, 10.0, 5.0)], [False, True]),
        ([(0.9, 100, 10.0, 5.0), (0.8, 50, 10.0, 5.0)], [True, True]),
        ([(0.9, 100, 20.0, 5.0), (0.9, 100, 10.0, 5.0), (0.9, 50, 5.0, 5.0)], [True, False, True]),
        ([(0.9, 100, None, 5.0), (0.9, 100, None, 9.0)], [True, False]),
        ([(0.9, 100, 10.0, 5.0), (0.9, 100, 10.0, 5.0)], [True, True]),
    ],
)
def test_the_front_is_what_no_other_beats(rows: list[tuple[Any, ...]], front: list[bool]) -> None:
    benches = []
    for place, (right, size_bytes, rate, ms) in enumerate(rows):
        summary = {"size_bytes": size_bytes, "decode_tokens_per_s": rate, "ttft_ms": {"p50": ms}}
        summary |= {"prompt_tokens_per_s": None, "peak_rss_bytes": 1}
        scores = [{"metric": "perplexity", "value": 9.0, "ci95": [8, 10], "n": 9}]
        scores += [{"metric": "exact_match", "value": right, "ci95": [0, 1], "n": 9}]
        benches.append({"file": f"{place}.gguf", "accuracy": {"scores": scores}, "latency": {"summary": summary}})
    found = candidates(benches, [], None)
    assert (found["metric"], [row["front"] for row in found["rows"]]) == ("exact_match", front)
    assert [row["ships"] for row in found["rows"]] == [True] + [False] * (len(rows) - 1)


def test_distribution_of_samples() -> None:
    samples = np.random.default_rng(0).lognormal(size=1001).tolist()
    found = distribution(samples)
    assert found is not None
    assert found["quantiles"] == pytest.approx(np.quantile(samples, np.linspace(0, 1, 101)).tolist())
    drawn = [sample for sample in samples if sample <= found["edges"][-1]]
    assert found["counts"] == np.histogram(drawn, bins=found["edges"])[0].tolist()
    assert sum(found["counts"]) + found["above"] == 1001
    assert distribution([]) is None
    assert distribution([3.0]) == distribution([3.0]) is not None


def test_a_long_curve_is_thinned_to_means() -> None:
    rows = [{"step": i, "loss": float(i % 2)} for i in range(1, 1201)] + [{"step": 1200, "eval_loss": 2.0}]
    points = curve(rows, "loss")
    assert len(points) == 300
    assert {value for _, value in points} == {0.5}
    assert points[-1][0] == 1200
    assert curve(rows, "eval_loss") == [[1200.0, 2.0]]


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (Axis("", 0.0, 1.0, str), [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (Axis("", 0.853, 0.94, str), [0.86, 0.88, 0.9, 0.92, 0.94]),
        (Axis("", 3.0, 17.0, str), [5, 10, 15]),
        (Axis("", 0.0011, 9.8, str, log=True), [0.01, 0.1, 1]),
        (Axis("", 4e6, 1.6e7, str, log=True), [5e6, 1e7]),
        (Axis("", 1e-9, 10.0, str, log=True), [1e-9, 1e-7, 1e-5, 1e-3, 0.1, 10]),
    ],
)
def test_ticks_are_round_and_few(axis: Axis, ticks: list[float]) -> None:
    assert axis.ticks() == pytest.approx(ticks)
