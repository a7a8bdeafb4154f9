"""The report as tables: one place decides what people see, each renderer only how it looks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeft.report.numbers import count, duration, in_unit, milliseconds, plural, share, signed, size, three

METRICS_PER_TABLE = 2
SIMPLER = ("base_zero_shot", "base_few_shot", "classical")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Table:
    """`columns` start with `>` when their cells are numbers (aligned right); `shrinks` is the column that may
    be cut where the place is narrow, None: no column."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: list[str] = field(default_factory=list)
    shrinks: int | None = None


def report_tables(report: Mapping[str, Any]) -> list[Table]:
    """Every part of the report that is there, the verdict last."""
    tables: list[Table] = []
    if report["data"]:
        tables.append(_data(report["data"]))
    if report["data_check"]:
        tables.append(_data_check(report["data_check"]))
    if report["training"]:
        tables.append(_training(report["recipe"], report["training"]))
    if report["files"]:
        tables.append(_files(report["files"]))
    if report["parity"]:
        tables.append(_parity(report["parity"]))
    if report["accuracy"]:
        tables.extend(_accuracy(report["accuracy"]))
    if report["latency"]:
        tables.append(_latency(report["latency"]))
    if report["provenance"].keys() - {"packages", "artifacts"}:
        tables.append(_provenance(report["provenance"]))
    if report["verdict"]:
        tables.append(verdict_table(report["verdict"]))
    return tables


def verdict_table(verdict: Mapping[str, Any]) -> Table:
    """The budgets of verdict.json, with the room left or the amount missing."""
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    for row in verdict["rows"]:
        measured, margin = "-", "-"
        if row["measured"] is not None:
            measured = in_unit(row["measured"], row["unit"])
            margin = signed(in_unit(row["margin"], row["unit"]))
            if row["margin_percent"] is not None:
                margin += f" ({row['margin_percent']:+.0f} %)"
        rows.append(("pass" if row["ok"] else "FAIL", row["metric"], measured, row["text"], margin))
        if row["note"]:
            interval = f" {_interval(row['ci95'])}" if row["ci95"] else ""
            notes.append(f"{row['metric']}{interval}: {row['note']}")
    return Table("Verdict", ("", "metric", ">measured", "budget", ">room left"), rows, notes)


def verdict_line(verdict: Mapping[str, Any]) -> str:
    """The verdict in one line."""
    rows = verdict["rows"]
    if not rows:
        return "PASS: the recipe sets no budgets"
    failed = [row["metric"] for row in rows if not row["ok"]]
    if not failed:
        return f"PASS: {len(rows)} of {len(rows)} budgets met"
    return f"FAIL: {len(failed)} of {len(rows)} budgets not met: {', '.join(failed)}"


def _data(data: Mapping[str, Any]) -> Table:
    names = ("examples", "tokens", "loss_tokens", "longest", "dropped", "truncated")
    rows = [(split, *(count(data[split].get(name, 0)) for name in names)) for split in SPLITS if split in data]
    columns = ("split", *(f">{name.replace('_', ' ')}" for name in names))
    return Table("Data", columns, rows)


def _data_check(check: Sequence[Mapping[str, Any]]) -> Table:
    rows: list[tuple[str, ...]] = [(found["code"], count(found["count"]), found["what"]) for found in check]
    return Table("Data check", ("code", ">count", "what"), rows, ["File and line of each: check.html of stage data"])


def _training(recipe: Mapping[str, Any], training: Mapping[str, Any]) -> Table:
    rows: list[tuple[str, ...]] = [("method", str(recipe.get("method", "-"))), ("steps", count(training["steps"]))]
    for name, label in (("loss", "training loss"), ("eval_loss", "validation loss")):
        if training[f"{name}_first"] is not None:
            first, last = training[f"{name}_first"], training[f"{name}_last"]
            rows.append((label, f"{first:.3f} → {last:.3f}"))
    if training["tokens"] is not None:
        rows.append(("tokens", count(training["tokens"])))
    if training["seconds"] is not None:
        rows.append(("time", duration(training["seconds"])))
    steps = training["loss_steps_averaged"]
    return Table(
        "Training", ("", ""), rows, [f"Training loss: mean of the first and last {steps} steps"] if steps > 1 else []
    )


def _files(files: list[Mapping[str, Any]]) -> Table:
    rows: list[tuple[str, ...]] = [
        (entry["file"] + (" *" if entry.get("ships") else ""), size(entry["bytes"]), entry.get("sha256") or "-")
        for entry in files
    ]
    return Table("Files", ("file", ">size", "sha256"), rows, ["*: the file that ships"], shrinks=2)


def _parity(parity: Mapping[str, Any]) -> Table:
    numbers = {"top1_agreement": share, "kl_mean": three, "kl_p99": three, "greedy_prefix": share}
    rows: list[tuple[str, ...]] = []
    for row in parity["rows"]:
        cells = (write(row[name]) if row.get(name) is not None else "-" for name, write in numbers.items())
        rows.append((row["form"], *cells, "pass" if row["ok"] else "FAIL"))
    notes = [f"The first form that moved: {parity['first_bad']}"] if parity.get("first_bad") else []
    columns = ("form", ">top-1", ">KL mean", ">KL p99", ">greedy prefix", "")
    return Table("Parity", columns, rows, notes, shrinks=0)


def _accuracy(accuracy: Mapping[str, Any]) -> Iterator[Table]:
    """Tables of a few metrics each, so that they fit a terminal."""
    metrics = accuracy["metrics"]
    for start in range(0, len(metrics), METRICS_PER_TABLE):
        shown = metrics[start : start + METRICS_PER_TABLE]
        rows = []
        for row in accuracy["rows"]:
            scores = {score["metric"]: score for score in row["scores"]}
            rows.append((row["label"], count(row["n"]), *(_score(scores.get(name)) for name in shown)))
        last = start + METRICS_PER_TABLE >= len(metrics)
        notes = _accuracy_notes(accuracy) if last else []
        title = "Accuracy" if start == 0 else "Accuracy, continued"
        yield Table(title, ("", ">n", *(f">{name}" for name in shown)), rows, notes, shrinks=0)


def _accuracy_notes(accuracy: Mapping[str, Any]) -> list[str]:
    notes = ["In brackets: 95 % interval (Wilson for shares, bootstrap for F1)"]
    notes += _warnings(accuracy)
    for row in accuracy["rows"]:
        said = [row["note"]] if row.get("note") else []
        if row.get("cut_by_length"):
            said.append(f"{plural(row['cut_by_length'], 'answer')} cut by the length limit")
        if row.get("prompts_too_long"):
            said.append(f"{plural(row['prompts_too_long'], 'prompt')} longer than the context, counted as wrong")
        if said:
            notes.append(f"{row['label']}: {'; '.join(said)}")
    return notes


def _warnings(accuracy: Mapping[str, Any]) -> Iterator[str]:
    """Where something simpler does as well as the fine-tuned file, by the first metric."""
    values = {row["form"]: (row["label"], row["scores"][0]["value"]) for row in accuracy["rows"] if row["scores"]}
    for form in SIMPLER:
        if form in values and "file" in values and values[form][1] >= values["file"][1]:
            label, value = values[form]
            yield f"Mind: {label} does as well as the fine-tuned file ({share(value)}) on these examples"


def _latency(latency: Mapping[str, Any]) -> Table:
    summary, roofline = latency["summary"], latency.get("roofline") or {}
    rows: list[tuple[str, ...]] = []
    if summary["load_ms"] is not None:
        rows.append(("load", milliseconds(summary["load_ms"]), "-"))
    spans = (("ttft_ms", "time to first token"), ("itl_ms", "time between tokens"), ("e2e_ms", "whole answer"))
    for name, label in spans:
        if summary.get(name):
            rows.append((label, milliseconds(summary[name]["p50"]), milliseconds(summary[name]["p95"])))
    for name, label in (("prompt_tokens_per_s", "prompt"), ("decode_tokens_per_s", "decode")):
        if summary[name] is not None:
            rows.append((label, f"{three(summary[name])} tok/s{_of_bound(roofline.get(label))}", "-"))
    rows.append(("peak memory", size(summary["peak_rss_bytes"]), "-"))
    rows.append(("file", size(summary["size_bytes"]), "-"))
    return Table("Speed and memory", ("", ">median", ">p95"), rows, list(_latency_notes(latency)))


def _latency_notes(latency: Mapping[str, Any]) -> Iterator[str]:
    summary, host, noise = latency["summary"], latency["host"], latency.get("noise") or {}
    if summary["n_prompt"]:
        yield (
            f"{plural(latency['n_runs'], 'run')} of {latency['n_gen']} tokens after "
            f"{summary['n_prompt']['p50']:.0f} prompt tokens (median)"
        )
    backend = ", ".join(f"{name} {version}" for name, version in host.get("backend", {}).items())
    yield f"{host['cpu']}, {plural(host['n_threads'], 'thread')}; {backend}"
    roofline = latency.get("roofline") or {}
    if roofline.get("decode"):
        yield (
            "In brackets: share of what this machine's memory and arithmetic allow"
            + (", measured while it was busy: the share is too high" if roofline["noisy"] else "")
        )
    elif "absent" in roofline:
        yield f"No bound to hold the speed against: {roofline['absent']}"
    if latency["left_out"]:
        yield f"{plural(latency['left_out'], 'prompt')} left out: too long for the context"
    if noise.get("noisy"):
        yield f"Noisy: {'; '.join(noise['reasons'])}"
    elif latency["busy"]:
        yield (
            f"The machine was busy (load {host['load_average_before']} on {host['n_cores']} cores before "
            "measuring): an idle one is faster"
        )
    if latency.get("failure"):
        yield f"Not complete: {latency['failure']}"


def _of_bound(part: Mapping[str, Any] | None) -> str:
    """` (42 %)` of the roofline's bound, where there is one."""
    share_of = part and part.get("achieved_share")
    return f" ({100 * share_of:.0f} %)" if share_of else ""


def _provenance(provenance: Mapping[str, Any]) -> Table:
    rows: list[tuple[str, ...]] = [
        (name.replace("_", " "), str(value))
        for name, value in provenance.items()
        if name not in ("packages", "artifacts")
    ]
    packages = sorted(provenance.get("packages", {}).items())
    notes = [", ".join(f"{name} {version}" for name, version in packages)] if packages else []
    return Table("Provenance", ("", ""), rows, notes, shrinks=1)


def _score(score: Mapping[str, Any] | None) -> str:
    return f"{share(score['value'])} {_interval(score['ci95'])}" if score else "-"


def _interval(ci95: list[float]) -> str:
    return f"[{ci95[0]:.3f}, {ci95[1]:.3f}]"
