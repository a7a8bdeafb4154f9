"""The report as data: what every stage found, without raw samples, in one JSON object."""

from collections.abc import Mapping, Sequence
from typing import Any

from edgeft.bench.paired import pair_accuracies
from edgeft.report.candidates import candidates
from edgeft.report.course import training_advice
from edgeft.report.series import curve, distribution
from edgeft.report.warnings import warnings

FORMAT = 1
UNQUANTIZED = ("f32", "f16", "bf16", "fp32", "fp16")  # how names of such files and folders end
LATENCY_NOTE_LOAD = 0.5  # load per core from which other processes are likely to have disturbed the clock


def build_report(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Gather the parts of a run, each of which may be missing.

    `parts` maps `recipe` (name, seed, base, method, shipped file's ftype), `data` (summary.json),
    `data_check` (what check.json counts by code, errors first), `train`, `distill` and `recover` (rows of log.jsonl),
    `recovered` (the file, the KL before and after), `files` (rows of files.json with sha256 and ships), `parity`,
    `baseline`, `bench`, `others` and `verdict` (their JSON), `mistakes` (as `bench.mistakes`
    finds them), `provenance` (names and values) and `settings` (the
    recipe's values by key) to what the stages wrote. A section of the report is None where its part is missing.
    """
    bench, baseline = parts.get("bench"), parts.get("baseline")
    benches = [bench, *(parts.get("others") or [])] if bench else []
    return {
        "format": FORMAT,
        "recipe": parts.get("recipe", {}),
        "data": parts.get("data"),
        "data_check": parts.get("data_check"),
        "training": _training(parts["train"]) if parts.get("train") else None,
        "distillation": _training(parts["distill"]) if parts.get("distill") else None,
        "recovery": _training(parts["recover"]) | parts["recovered"]
        if parts.get("recover") and parts.get("recovered")
        else None,
        "files": parts.get("files"),
        "parity": parts.get("parity"),
        "candidates": candidates(benches, parts.get("files") or [], parts.get("parity")) if benches else None,
        "accuracy": _accuracy(parts.get("recipe", {}), bench, baseline) if bench or baseline else None,
        "paired": _paired(benches, parts.get("files") or [], baseline) if benches else [],
        "mistakes": parts.get("mistakes"),
        "slices": bench["accuracy"].get("slices", []) if bench else [],
        "reliability": bench["accuracy"].get("reliability", []) if bench else [],
        "latency": _latency(bench) if bench else None,
        "provenance": parts.get("provenance", {}),
        "settings": parts.get("settings", {}),
        "verdict": parts.get("verdict"),
        "warnings": list(warnings(parts.get("data"), bench, baseline)),
    }


def _training(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """First and last loss of training and evaluation; training losses are the mean of up to ten steps."""
    losses = [row["loss"] for row in rows if row.get("loss") is not None]
    evaluations = [row["eval_loss"] for row in rows if row.get("eval_loss") is not None]
    few = max(1, min(10, len(losses) // 10))
    return {
        "steps": max((row["step"] for row in rows if "step" in row), default=0),
        "loss_first": _mean(losses[:few]),
        "loss_last": _mean(losses[-few:]),
        "loss_steps_averaged": few,
        "eval_loss_first": evaluations[0] if evaluations else None,
        "eval_loss_last": evaluations[-1] if evaluations else None,
        "tokens": _sum(rows, "tokens"),
        "seconds": _sum(rows, "seconds"),
        "curves": {name: curve(rows, name) for name in ("loss", "eval_loss")},
        "advice": training_advice(evaluations),
    }


def _accuracy(
    recipe: Mapping[str, Any], bench: Mapping[str, Any] | None, baseline: Mapping[str, Any] | None
) -> dict[str, Any]:
    forms = list(baseline["forms"]) if baseline else []
    if bench:
        label = f"fine-tuned file, {recipe['ship']}" if recipe.get("ship") else bench.get("file") or "the file"
        note = "; ".join(filter(None, (bench["file"], bench["accuracy"].get("shortfall"))))
        forms.insert(0, {**bench["accuracy"], "form": "file", "label": label, "note": note})
    rows = [
        {
            **{key: form.get(key) for key in ("form", "label", "note", "n", "cut_by_length", "prompts_too_long")},
            "scores": [{k: v for k, v in score.items() if k != "outcomes"} for score in form["scores"]],
        }
        for form in forms
    ]
    metrics = dict.fromkeys(score["metric"] for row in rows for score in row["scores"])
    return {"metrics": list(metrics), "rows": rows}


def _paired(
    benches: Sequence[Mapping[str, Any]], files: Sequence[Mapping[str, Any]], baseline: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """The shipped file's answers against those of the model before export and of a file that is not quantized, and
    against earlier answers where given."""
    bench, *others = benches
    plain = {entry["file"]: entry["ftype"] for entry in files if entry["ftype"].lower().endswith(UNQUANTIZED)}
    forms = (baseline or {"forms": []})["forms"]
    rivals = [(form["label"], form) for form in forms if form["form"] == "merged"]
    rivals += [(plain[other["file"]], other["accuracy"]) for other in others if other["file"] in plain][:1]
    found = [
        {"what": what, "rows": [row.to_json() for row in pair_accuracies(bench["accuracy"], accuracy)]}
        for what, accuracy in rivals
    ]
    return [*found, *([bench["against"]] if bench.get("against") else [])]


def _latency(bench: Mapping[str, Any]) -> dict[str, Any]:
    latency = bench["latency"]
    host = latency["host"]
    before = host.get("load_average_before")
    return {
        "summary": latency["summary"],
        "n_gen": latency["n_gen"],
        "n_runs": len(latency["runs"]),
        "planned_runs": latency.get("planned_runs"),
        "left_out": latency["left_out"],
        "host": host,
        "busy": before is not None and before > LATENCY_NOTE_LOAD * host.get("n_cores", 1),
        "noise": latency.get("noise"),
        "failure": bench.get("failure", ""),
        "roofline": bench.get("roofline", {}),
        "definitions": latency["definitions"],
        "energy": latency.get("energy", {}),
        "page_cache": latency.get("page_cache", {}),
        "distributions": {
            "ttft_ms": distribution([run["ttft_ms"] for run in latency["runs"]]),
            "itl_ms": distribution([gap for run in latency["runs"] for gap in run["itl_ms"]]),
        },
    }


def _sum(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [row[name] for row in rows if name in row]
    return sum(values) if values else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
