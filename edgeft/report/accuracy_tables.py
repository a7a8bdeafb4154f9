"""How good the answers are: scores of every form, pairs, slices and calibration."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgeft.bench.paired import SIGNIFICANT
from edgeft.report.numbers import count, plural, share, signed, three
from edgeft.report.table import Table

METRICS_PER_TABLE = 2
SIMPLER = ("base_zero_shot", "base_few_shot", "classical")


def accuracy_tables(accuracy: Mapping[str, Any], paired: Sequence[Mapping[str, Any]] = ()) -> Iterator[Table]:
    """Tables of a few metrics each, so that they fit a terminal. Pairs without a difference are a note here, and no
    table of their own."""
    metrics = accuracy["metrics"]
    for start in range(0, len(metrics), METRICS_PER_TABLE):
        shown = metrics[start : start + METRICS_PER_TABLE]
        rows = []
        for row in accuracy["rows"]:
            scores = {score["metric"]: score for score in row["scores"]}
            rows.append((row["label"], count(row["n"]), *(score_text(scores.get(name)) for name in shown)))
        last = start + METRICS_PER_TABLE >= len(metrics)
        notes = [*_accuracy_notes(accuracy), *_same_as(paired)] if last else []
        title = "Accuracy" if start == 0 else "Accuracy, continued"
        yield Table(title, ("", ">n", *(f">{name}" for name in shown)), rows, notes, shrinks=0)


def paired_tables(paired: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """The file's answers against others on the same examples."""
    for against in paired:
        if _is_tie(against):
            continue
        rows: list[tuple[str, ...]] = [
            (
                row["metric"],
                count(row["n"]),
                count(row["only_a"]),
                count(row["only_b"]),
                f"{signed(share(row['difference']))} {interval_text(row['ci95'])}",
                three(row["p"]),
            )
            for row in against["rows"]
        ]
        if rows:
            columns = ("", ">n", ">only it", ">only other", ">difference", ">p")
            notes = ["Examples that only the file, or only the other, got right; p: McNemar's exact test"]
            notes += [
                f"{row['metric']}: {row['outcome']} (p < {SIGNIFICANT})" for row in against["rows"] if _shown(row)
            ]
            yield Table(f"The file against {against['what']}", columns, rows, notes, shrinks=0)


def _is_tie(against: Mapping[str, Any]) -> bool:
    return all(row["only_a"] == row["only_b"] == 0 for row in against["rows"])


def _same_as(paired: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for against in paired:
        if against["rows"] and _is_tie(against):
            names = ", ".join(row["metric"] for row in against["rows"])
            n = against["rows"][0]["n"]
            yield f"The file and {against['what']} have the same outcome on each of {plural(n, 'example')} ({names})"


def slice_tables(slices: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """Scores by the values of a field, worst first; only a field's first metric is shown where the place is short."""
    seen = set()
    for table in slices:
        if len(table["rows"]) < 2:
            continue
        rows: list[tuple[str, ...]] = [
            (row["value"], count(row["n"]), share(row["score"]), interval_text(row["ci95"])) for row in table["rows"]
        ]
        columns = (table["field"], ">n", f">{table['metric']}", ">95 % interval")
        title = f"{table['metric']} by {table['field']}"
        yield Table(title, columns, rows, [_gap_text(table)], shrinks=0, detail=table["field"] in seen)
        seen.add(table["field"])


def reliability_table(bins: Sequence[Mapping[str, Any]]) -> Table:
    """Confidence against accuracy, bin by bin."""
    rows: list[tuple[str, ...]] = [
        (count(each["n"]), share(each["confidence"]), share(each["accuracy"])) for each in bins
    ]
    return Table("Calibration", (">n", ">mean confidence", ">right"), rows, detail=True)


def score_text(score: Mapping[str, Any] | None) -> str:
    """The value with its interval."""
    return f"{share(score['value'])} {interval_text(score['ci95'])}" if score else "-"


def interval_text(ci95: Sequence[float]) -> str:
    """`[0.853, 0.923]`."""
    return f"[{ci95[0]:.3f}, {ci95[1]:.3f}]"


def _shown(row: Mapping[str, Any]) -> bool:
    return bool(row["p"] < SIGNIFICANT)


def _gap_text(table: Mapping[str, Any]) -> str:
    gap = table["gap"]
    if gap is None:
        return f"No gap: fewer than two values have {table['minimum']} examples"
    chance = f"a gap so large comes by chance with p = {three(gap['p'])}"
    return f"{gap['best']} over {gap['worst']}: {signed(share(gap['gap']))} {interval_text(gap['ci95'])}; {chance}"


def _accuracy_notes(accuracy: Mapping[str, Any]) -> list[str]:
    notes = ["In brackets: 95 % interval (Wilson for shares, bootstrap for F1 and means)"]
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
