"""Budgets as people write them. Standard library only: a recipe is checked long before anything is measured.

A budget is `"<op> number[unit]"`, for example `">= 0.90"`, `">= 90%"`, `"<= 120ms"`, `"<= 8MB"`. Operators:
>=, <=, >, <, ==. Units: % for shares, B KB MB GB (powers of 1000) KiB MiB GiB (powers of 1024) for bytes,
us ms s for times, tokens/s for rates; without a unit the number is in the metric's own unit.
"""

import difflib
import math
import re
from dataclasses import dataclass

from edgeft.errors import UsageError

TASK_METRICS = ("exact_match", "json_valid", "json_match", "json_field_f1", "label_accuracy", "macro_f1")
SHARE, NUMBER, BYTES, MS, RATE = "share", "number", "bytes", "ms", "tokens/s"
UNITS: dict[str, dict[str, float]] = {
    SHARE: {"": 1, "%": 0.01},
    NUMBER: {"": 1},
    BYTES: {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    MS: {"": 1, "us": 1e-3, "ms": 1, "s": 1e3},
    RATE: {"": 1, "tokens/s": 1},
}
OTHER_METRICS = {
    "kl_mean": NUMBER, "kl_p99": NUMBER, "top1_agreement": SHARE, "greedy_prefix": SHARE,
    "load_ms": MS, "ttft_ms_p50": MS, "ttft_ms_p95": MS, "itl_ms_p50": MS, "itl_ms_p95": MS,
    "prompt_tokens_per_s": RATE, "decode_tokens_per_s": RATE, "peak_rss_bytes": BYTES, "size_bytes": BYTES,
}  # fmt: skip
PATTERN = re.compile(r"(>=|<=|==|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([A-Za-z/%]*)")


@dataclass(frozen=True)
class Budget:
    """`limit` is in the metric's own unit (`unit`); `text` is what the person wrote."""

    metric: str
    text: str
    op: str
    limit: float
    unit: str


def known_gate_metrics() -> dict[str, str]:
    """{metric: its unit} of everything a budget can be set on."""
    tasks = dict.fromkeys(TASK_METRICS, SHARE)
    return tasks | {f"{name}_drop": SHARE for name in tasks} | OTHER_METRICS


def parse_budget(metric: str, text: str) -> Budget:
    """Read one budget. Raises UsageError for an unknown metric, a text of another form or a wrong unit."""
    known = known_gate_metrics()
    if metric not in known:
        near = difflib.get_close_matches(metric, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"gate.{metric}: unknown metric; {hint}known: {', '.join(known)}")
    match = PATTERN.fullmatch(text.strip())
    if not match or not math.isfinite(float(match[2])):
        raise UsageError(f'gate.{metric}: {text!r} is not a budget; write one like ">= 0.90" or "<= 8MB"')
    op, number, unit = match.groups()
    scales = UNITS[known[metric]]
    if unit not in scales:
        allowed = ", ".join(name for name in scales if name) or "no unit"
        raise UsageError(f"gate.{metric}: {text!r}: unknown unit {unit!r} for this metric; use {allowed}")
    return Budget(metric, text.strip(), op, float(number) * scales[unit], known[metric])
