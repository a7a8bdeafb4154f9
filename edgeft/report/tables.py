"""The report as tables: one place decides what people see, each renderer only how it looks."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from edgeft.report.accuracy_tables import accuracy_tables, interval_text, paired_tables, reliability_table, slice_tables
from edgeft.report.mistake_tables import mistake_tables
from edgeft.report.numbers import count, duration, in_unit, share, signed, size, three
from edgeft.report.speed_tables import candidates_table, definitions_table, latency_table, machine_table
from edgeft.report.table import Table

VERDICT, HASHES = "Verdict", "Hashes"
HASH = "_sha256"
"""How names of what is hashed end in provenance.json."""
SPLITS = ("train", "validation", "test")


def report_tables(report: Mapping[str, Any]) -> list[Table]:
    """Every part of the report that is there, in the order of the run, the verdict last."""
    tables = [*preparation_tables(report), *measured_tables(report), *origin_tables(report)]
    verdict = [verdict_table(report["verdict"])] if report["verdict"] else []
    return [table for table in (*tables, *verdict) if table.rows]


def preparation_tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """How the files came about."""
    if report["data"]:
        yield _data(report["data"])
    if report["data_check"]:
        yield _data_check(report["data_check"])
    if report["training"]:
        yield _training("Training", report["training"], report["recipe"])
    if report["distillation"]:
        yield _training("Distillation", report["distillation"])
    if report["recovery"]:
        yield _recovery(report["recovery"])
    if report["files"]:
        yield _files(report["files"])


def measured_tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """How good and how fast they are."""
    if report["candidates"] and len(report["candidates"]["rows"]) > 1:
        yield candidates_table(report["candidates"])
    if report["accuracy"]:
        yield from accuracy_tables(report["accuracy"], report["paired"])
    if report.get("mistakes"):
        yield from mistake_tables(report["mistakes"])
    yield from paired_tables(report["paired"])
    yield from slice_tables(report["slices"])
    if report["reliability"]:
        yield reliability_table(report["reliability"])
    if report["latency"]:
        yield latency_table(report["latency"])
    if report["parity"]:
        yield _parity(report["parity"])


def origin_tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """What someone asks for who reproduces the result or doubts it."""
    if report["provenance"].keys() - {"packages", "artifacts"}:
        yield _provenance(report["provenance"])
    if hashes := list(_hashes(report)):
        yield Table(HASHES, ("", "sha256"), hashes, shrinks=1, detail=True)
    if report["settings"]:
        rows: list[tuple[str, ...]] = [
            (name, json.dumps(value, ensure_ascii=False)) for name, value in report["settings"].items()
        ]
        yield Table("Recipe", ("key", "value"), rows, shrinks=1, detail=True)
    if report["latency"]:
        yield machine_table(report["latency"])
        yield definitions_table(report["latency"]["definitions"])


def _hashes(report: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Of the files, of what they were made from, and the key of every artifact: out of the way of readers."""
    for entry in report["files"] or ():
        if entry.get("sha256"):
            yield entry["file"], entry["sha256"]
    for name, value in report["provenance"].items():
        if name.endswith(HASH):
            yield name.removesuffix(HASH).replace("_", " "), str(value)
    for stage, key in report["provenance"].get("artifacts", {}).items():
        yield f"stage {stage}", key


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
        rows.append((_outcome(row), row["metric"], measured, row["text"], margin))
        if row["note"]:
            interval = f" {interval_text(row['ci95'])}" if row["ci95"] else ""
            notes.append(f"{row['metric']}{interval}: {row['note']}")
    return Table(VERDICT, ("", "metric", ">measured", "budget", ">room left"), rows, notes)


def verdict_line(verdict: Mapping[str, Any]) -> str:
    """The verdict in one line. A verdict that no wrong answer could have changed says so."""
    rows = verdict["rows"]
    passed = "PASS" if is_good(verdict) else "PASS, but no accuracy budget is set"
    if not rows:
        return f"{passed}: there are no budgets"
    failed = [row["metric"] for row in rows if not row["ok"]]
    if not failed:
        noise = sum(bool(row.get("within_noise")) for row in rows)
        return f"{passed}: {len(rows)} of {len(rows)} budgets met{f', {noise} of them within noise' if noise else ''}"
    return f"FAIL: {len(failed)} of {len(rows)} budgets not met: {', '.join(failed)}"


def is_good(verdict: Mapping[str, Any]) -> bool:
    """Whether it passed, and a model with wrong answers would not have."""
    return bool(verdict["passed"] and verdict.get("judges_accuracy", True))


def _outcome(row: Mapping[str, Any]) -> str:
    if row.get("within_noise"):
        return "noise"
    return "pass" if row["ok"] else "FAIL"


def _data(data: Mapping[str, Any]) -> Table:
    names = ("examples", "tokens", "loss_tokens", "longest", "dropped", "truncated")
    rows = [(split, *(count(data[split].get(name, 0)) for name in names)) for split in SPLITS if split in data]
    columns = ("split", *(f">{name.replace('_', ' ')}" for name in names))
    return Table("Data", columns, rows)


def _data_check(check: Sequence[Mapping[str, Any]]) -> Table:
    rows: list[tuple[str, ...]] = [(found["code"], count(found["count"]), found["what"]) for found in check]
    note = "File and line of each: data/check.html"
    return Table("Data check", ("code", ">count", "what"), rows, [note], links={note: "data/check.html"})


def _training(title: str, training: Mapping[str, Any], recipe: Mapping[str, Any] = MappingProxyType({})) -> Table:
    told = (("method", recipe.get("method")), ("products in", recipe.get("torch_dtype")))
    rows: list[tuple[str, ...]] = [(name, value) for name, value in told if value]
    rows.append(("steps", count(training["steps"])))
    for name, label in (("loss", "training loss"), ("eval_loss", "validation loss")):
        if training[f"{name}_first"] is not None:
            first, last = training[f"{name}_first"], training[f"{name}_last"]
            rows.append((label, f"{first:.3f} → {last:.3f}"))
    if training["tokens"] is not None:
        rows.append(("tokens", count(training["tokens"])))
    if training["seconds"] is not None:
        rows.append(("time", duration(training["seconds"])))
    steps = training["loss_steps_averaged"]
    notes = [f"Training loss: mean of the first and last {steps} steps"] if steps > 1 else []
    if training.get("advice"):
        notes.append(training["advice"][0].upper() + training["advice"][1:])
    return Table(title, ("", ""), rows, notes)


def _recovery(recovery: Mapping[str, Any]) -> Table:
    """KL on held-out examples, in torch, of the model with the file's own rounded weights."""
    table = _training("Recovery", recovery)
    before, after = recovery["kl_before"], recovery["kl_after"]
    told = recovery["file"] or "no file: training made none better"
    return replace(table, rows=[("file", told), ("KL", f"{before:.3g} → {after:.3g}"), *table.rows])


def _files(files: list[Mapping[str, Any]]) -> Table:
    rows: list[tuple[str, ...]] = [
        (entry["file"] + (" *" if entry.get("ships") else ""), size(entry["bytes"])) for entry in files
    ]
    return Table("Files", ("file", ">size"), rows, ["*: the file that ships"], shrinks=0)


def _parity(parity: Mapping[str, Any]) -> Table:
    numbers = {"top1_agreement": share, "kl_mean": three, "kl_p99": three, "greedy_prefix": share}
    rows: list[tuple[str, ...]] = []
    for row in parity["rows"]:
        cells = (write(row[name]) if row.get(name) is not None else "-" for name, write in numbers.items())
        rows.append((row["form"], *cells, "pass" if row["ok"] else "FAIL"))
    notes = [f"The first form that moved: {parity['first_bad']}"] if parity.get("first_bad") else []
    columns = ("form", ">top-1", ">KL mean", ">KL p99", ">greedy prefix", "")
    return Table("Parity", columns, rows, notes, shrinks=0)


def _provenance(provenance: Mapping[str, Any]) -> Table:
    rows: list[tuple[str, ...]] = [
        (name.replace("_", " "), str(value))
        for name, value in provenance.items()
        if name not in ("packages", "artifacts") and not name.endswith(HASH)
    ]
    packages = sorted(provenance.get("packages", {}).items())
    notes = [", ".join(f"{name} {version}" for name, version in packages)] if packages else []
    return Table("Provenance", ("", ""), rows, notes, shrinks=1)
