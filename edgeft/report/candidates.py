"""Every measured file side by side: accuracy, size and speed, and which of them nothing else beats."""

from collections.abc import Mapping, Sequence
from typing import Any

LOWER_IS_BETTER = ("perplexity", "ece")
SPEEDS = ("decode_tokens_per_s", "prompt_tokens_per_s", "ttft_ms_p50", "ttft_ms_p95", "peak_rss_bytes")


def candidates(
    benches: Sequence[Mapping[str, Any]],
    files: Sequence[Mapping[str, Any]],
    parity: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """`metric` and one row for each measured file, in the order of `files`; `benches` has the shipped file first.

    The metric is the first that counts upwards; files without it have `value` None. `front` marks the rows that no
    other is at least as good as in accuracy, size and speed at once, and better in one of them; speed is that of
    decoding, or the time to the answer of a model that decodes nothing.
    """
    metric = next((s["metric"] for s in benches[0]["accuracy"]["scores"] if s["metric"] not in LOWER_IS_BETTER), None)
    order = {entry["file"]: place for place, entry in enumerate(files)}
    types = {entry["file"]: entry["ftype"] for entry in files}
    forms = {row["form"]: row for row in (parity or {"rows": []})["rows"]}
    rows = [_row(bench, metric, types.get(bench["file"]), forms) for bench in benches]
    rows[0]["ships"] = True
    rows.sort(key=lambda row: order.get(row["file"], len(order)))
    for row in rows:
        row["front"] = not any(_beats(other, row) for other in rows)
    return {"metric": metric, "rows": rows}


def _row(
    bench: Mapping[str, Any], metric: str | None, ftype: str | None, forms: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    score = next((s for s in bench["accuracy"]["scores"] if s["metric"] == metric), None)
    form = forms.get(ftype or "", {})
    summary = bench["latency"]["summary"]
    return {
        "file": bench["file"],
        "label": ftype or bench["file"],
        "ships": False,
        "value": score and score["value"],
        "ci95": score and score["ci95"],
        "n": score["n"] if score else 0,
        "size_bytes": summary["size_bytes"],
        **{name: _number(summary, name) for name in SPEEDS},
        "kl_mean": form.get("kl_mean"),
        "noisy": bool((bench["latency"].get("noise") or {}).get("noisy")),
    }


def _number(summary: Mapping[str, Any], name: str) -> float | None:
    """`ttft_ms_p95` is the p95 of `ttft_ms`."""
    if name in summary:
        value: float | None = summary[name]
        return value
    whole, _, quantile = name.rpartition("_")
    return (summary.get(whole) or {}).get(quantile)


def _beats(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    def goods(row: Mapping[str, Any]) -> tuple[float, ...]:
        return (row["value"] or 0.0, -row["size_bytes"], row["decode_tokens_per_s"] or -(row["ttft_ms_p50"] or 0.0))

    pairs = list(zip(goods(one), goods(other), strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)
