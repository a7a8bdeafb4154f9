"""What the file gets wrong, as tables: its worst answers, labels it mixes up, fields of its JSON."""

from collections.abc import Iterator, Mapping
from typing import Any

from edgeft.report.numbers import count, plural, share
from edgeft.report.table import Table

WORST, MATRIX, FIELDS = "Worst answers", "Confusion matrix", "Errors by field"
SHOWS_ANSWERS = (WORST, FIELDS)
"""Tables with texts of the test set."""
PREDICTIONS = "bench/predictions.jsonl"
TERMINAL_ROWS, TERMINAL_WIDTH = 5, 24


def mistake_tables(mistakes: Mapping[str, Any]) -> Iterator[Table]:
    """Those that apply; none where every answer is right."""
    if mistakes["worst"]:
        yield _worst(mistakes)
    if mistakes["mixups"]:
        yield _mixups(mistakes)
        if mistakes["confusion"] is not None:
            yield _matrix(mistakes["confusion"])
    if any(row["wrong"] + row["missing"] + row["extra"] for row in mistakes["fields"]):
        yield _fields(mistakes)


def _worst(mistakes: Mapping[str, Any]) -> Table:
    sure = any(row["confidence"] is not None for row in mistakes["worst"])
    placed = any(row["source"] for row in mistakes["worst"])
    columns = ["prompt", "expected", "got", *([">confidence"] if sure else []), *(["where"] if placed else [])]
    rows, links = [], {}
    for row in mistakes["worst"]:
        cells = [row["prompt"] or "-", row["expected"], row["got"]]
        if sure:
            cells.append("-" if row["confidence"] is None else share(row["confidence"]))
        if placed:
            cells.append(f"{row['source']}:{row['line']}" if row["source"] else "-")
            links[cells[-1]] = "data/test.jsonl"
        rows.append(tuple(cells))
    every = f"Every answer: {PREDICTIONS}"
    n_cut = sum(row["finish"] == "length" for row in mistakes["worst"])
    notes = [
        f"{plural(mistakes['n_wrong'], 'wrong answer')} of {count(mistakes['n'])} by {mistakes['metric']}; "
        + (f"the {len(rows)} worst are here" if mistakes["n_wrong"] > len(rows) else "all are here"),
        *([f"{plural(n_cut, 'answer')} of these cut by the length limit (bench.max_new_tokens)"] if n_cut else []),
        every,
    ]
    links[every] = PREDICTIONS
    return Table(WORST, tuple(columns), rows, notes, links=links, most=TERMINAL_ROWS, long_texts=True)


def _mixups(mistakes: Mapping[str, Any]) -> Table:
    rows: list[tuple[str, ...]] = [
        (row["expected"], row["got"], count(row["n"]), share(row["share"])) for row in mistakes["mixups"]
    ]
    columns = ("expected", "got", ">times", ">share of the expected")
    return Table("Labels taken for others", columns, rows, most=TERMINAL_ROWS, widest=TERMINAL_WIDTH)


def _matrix(confusion: Mapping[str, Any]) -> Table:
    """Rows are what was expected, columns what was answered, by number: names would be too wide."""
    labels, counts = confusion["labels"], confusion["counts"]
    rest = any(row[-1] for row in counts)
    columns = ("expected", *(f">{place}" for place in range(1, len(labels) + 1)), *([">other"] if rest else []))
    rows = [
        (f"{place} {label}", *(count(n) for n in (row if rest else row[:-1])))
        for place, (label, row) in enumerate(zip(labels, counts, strict=True), 1)
    ]
    notes = ["Rows: the expected label; columns: the answer, by the number of its row"]
    if confusion["n_labels"] > len(labels):
        notes.append(f"The {len(labels)} labels with the most mistakes, of {confusion['n_labels']}")
    return Table(MATRIX, columns, rows, notes, detail=True)


def _fields(mistakes: Mapping[str, Any]) -> Table:
    rows = [
        (
            row["field"],
            count(row["n"]),
            share(row["right"] / row["n"]) if row["n"] else "-",
            *(count(row[kind]) for kind in ("wrong", "missing", "extra")),
            row["example"] or "-",
        )
        for row in mistakes["fields"]
    ]
    columns = ("field", ">n", ">right", ">wrong", ">missing", ">unasked", "most often")
    notes = ["n: answers that should have the field; unasked: answers that have it and should not"]
    return Table(FIELDS, columns, rows, notes, shrinks=6)
