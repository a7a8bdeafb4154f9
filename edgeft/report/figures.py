"""Which charts the report has, and what goes into each; a chart without its data is left out."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgeft.report import svg
from edgeft.report.axes import Axis, around
from edgeft.report.numbers import count, milliseconds, size

SMALLEST_KL = 1e-7  # below it forms are equal for every purpose, and a logarithmic axis has no zero
MOST_SLICES = 30
MOST_DOTS = 40
"""Steps of a training of which each has a point; of a longer one the line is enough."""


def figures(report: Mapping[str, Any]) -> dict[str, list[str]]:
    """{title of the table they belong to: charts as HTML}."""
    found = {
        "Files side by side": _candidates(report["candidates"]),
        "Accuracy": _accuracy(report["accuracy"]),
        "Calibration": _calibration(report["reliability"]),
        "Speed and memory": _speed(report["latency"]),
        "Parity": _parity(report["parity"]),
        "Training": _training(report["training"]),
        "Distillation": _training(report["distillation"]),
        "Recovery": _training(report["recovery"]),
        **{f"{table['metric']} by {table['field']}": _slices(table) for table in report["slices"]},
    }
    return {title: list(charts) for title, charts in found.items()}


def _candidates(found: Mapping[str, Any] | None) -> Iterator[str]:
    """Score against size and against speed; a line joins the files that no other beats."""
    rows = [row for row in found["rows"] if row["value"] is not None] if found else []
    if found is None or len(rows) < 2:
        return
    ends = [end for row in rows for end in row["ci95"]]
    y = around(found["metric"], ends, _plain, floor=0.0, roof=1.0)
    spans = (
        ("size_bytes", "size of the file (logarithmic)", size, True),
        ("decode_tokens_per_s", "decoded tokens per second", _plain, False)
        if any(row["decode_tokens_per_s"] for row in rows)
        else ("ttft_ms_p50", "milliseconds to the answer, median", _plain, False),
    )
    for name, label, write, log in spans:
        known = [row for row in rows if row[name]]
        if len(known) < 2:
            continue
        x = around(label, [row[name] for row in known], write, log=log, floor=None if log else 0.0)
        front = sorted((row[name], row["value"]) for row in known if row["front"])
        marks = [svg.line(x, y, front, "faint")] if len(front) > 1 else []
        known.sort(key=lambda row: not row["ships"])  # its name gets the best place
        dots = [
            svg.Dot(
                row[name],
                row["value"],
                "one" if row["ships"] else "two" if row["front"] else "three",
                row["label"] + (" (ships)" if row["ships"] else ""),
                row["ci95"],
            )
            for row in known
        ]
        marks += svg.dots(x, y, dots)
        yield svg.chart(f"{found['metric']} by {label.split(' (')[0]}, with 95 % intervals", x, y, marks)


def _accuracy(accuracy: Mapping[str, Any] | None) -> Iterator[str]:
    for metric in accuracy["metrics"] if accuracy else ():
        rows = []
        for row in accuracy["rows"] if accuracy else ():
            score = next((each for each in row["scores"] if each["metric"] == metric), None)
            if score:
                kind = "one" if row["form"] == "file" else "two" if row["form"] == "merged" else "three"
                rows.append((row["label"], score["value"], score["ci95"], kind))
        if rows:
            yield svg.rows_chart(f"{metric} of every form, with 95 % intervals", _span(metric, rows), rows)


def _span(metric: str, rows: Sequence[tuple[str, float, Sequence[float] | None, str]]) -> Axis:
    """0 to 1, or what is needed for a metric that is no share."""
    ends = [end for _, value, interval, _ in rows for end in (value, *(interval or ()))]
    return Axis(metric, 0.0, 1.0, _plain) if max(ends) <= 1 else around(metric, ends, _plain, floor=0.0)


def _slices(table: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        (f"{row['value']} ({row['n']})", row["score"], row["ci95"], "three" if row["small"] else "one")
        for row in table["rows"][:MOST_SLICES]
    ]
    if rows:
        shown = "" if len(rows) == len(table["rows"]) else f", the {MOST_SLICES} worst"
        title = f"{table['metric']} by {table['field']}{shown}; grey: fewer than {table['minimum']} examples"
        yield svg.rows_chart(title, Axis(table["metric"], 0.0, 1.0, _plain), rows)


def _calibration(bins: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not bins:
        return
    x, y = Axis("confidence", 0.0, 1.0, _plain), Axis("share right", 0.0, 1.0, _plain)
    points = [(each["confidence"], each["accuracy"]) for each in bins]
    marks = [svg.line(x, y, [(0, 0), (1, 1)], "faint"), svg.line(x, y, points, "one")]
    marks += svg.dots(x, y, [svg.Dot(*point, "one") for point in points])
    yield svg.chart("Share of right answers by confidence; on the diagonal confidence is honest", x, y, marks)


def _speed(latency: Mapping[str, Any] | None) -> Iterator[str]:
    names = {"ttft_ms": "Time to first token", "itl_ms": "Time between tokens"}
    for key, name in names.items():
        found = latency["distributions"][key] if latency else None
        if not found:
            continue
        quantiles = found["quantiles"]
        x = around("milliseconds", [found["edges"][0], found["edges"][-1]], _plain, floor=0.0)
        y = Axis("samples", 0.0, max(found["counts"]) * 1.25, count)
        marks = [svg.bars(x, y, found["edges"], found["counts"], "one")]
        marks += [
            svg.rule(x, quantiles[percent], f"p{percent} {milliseconds(quantiles[percent])}", row=row)
            for row, percent in enumerate((50, 95))
        ]
        beyond = f", the slowest {count(found['above'])} not drawn" if found["above"] else ""
        yield svg.chart(f"{name}: {count(found['n'])} samples{beyond}", x, y, marks)
        shares = Axis("share of samples", 0.0, 1.0, _plain)
        marks = [svg.line(x, shares, [(min(q, x.high), p / 100) for p, q in enumerate(quantiles)], "one")]
        yield svg.chart(f"{name}: share of samples as fast or faster", x, shares, marks)


def _parity(parity: Mapping[str, Any] | None) -> Iterator[str]:
    rows = [
        (row["form"], max(row["kl_mean"], SMALLEST_KL), None, "one" if row["ok"] else "bad")
        for row in (parity["rows"] if parity else ())
        if row.get("kl_mean") is not None
    ]
    if rows:
        x = around("nats a token (logarithmic)", [SMALLEST_KL, *(row[1] for row in rows)], _plain, log=True)
        yield svg.rows_chart("Mean KL divergence from the trained model, form by form", x, rows)


def _training(training: Mapping[str, Any] | None) -> Iterator[str]:
    loss, evaluated = (training["curves"][name] if training else [] for name in ("loss", "eval_loss"))
    points = [*loss, *evaluated]
    if len(points) < 2:
        return
    values = [value for _, value in points]
    x = Axis("step", 0.0, max(step for step, _ in points), count)
    y = around("loss", values, _plain, floor=0.0)
    marks = [svg.line(x, y, loss, "one")]
    if len(loss) <= MOST_DOTS:
        marks += svg.dots(x, y, [svg.Dot(a, b, "one") for a, b in loss])
    marks += [svg.line(x, y, evaluated, "two"), *svg.dots(x, y, [svg.Dot(a, b, "two") for a, b in evaluated])]
    legend = [("one", "training"), *([("two", "validation")] if evaluated else [])]
    yield svg.chart("Loss by step", x, y, marks, legend=legend)


def _plain(value: float) -> str:
    """A tick without zeros behind it."""
    return f"{value:.0e}".replace("e-0", "e-") if 0 < value < 1e-3 else f"{round(value, 6):,g}"
