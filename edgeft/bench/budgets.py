"""Budgets as people write them. Standard library only: a recipe is checked long before anything is measured.

    ">= 0.90"  ">= 90%"  "<= 120ms"  "<= 8MB"                    a number, with or without a unit
    ">= 0.95x baseline"  "<= 110% baseline"                      a share of the stored baseline's value
    "<= baseline"  ">= baseline - 1%"  "<= baseline + 0.005"     the baseline's value, moved by a number with a unit

Operators: >=, <=, >, <, ==. Units: % for shares, B KB MB GB (powers of 1000) KiB MiB GiB (powers of 1024) for
bytes, us ms s for times, tokens/s for rates; without a unit the number is in the metric's own unit. A metric may be
that of one file of a run: `nano-Q4_K_M/size_bytes`.
"""

import difflib
import math
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Self

from edgeft.errors import UsageError

TASK_METRICS = (
    "exact_match", "json_valid", "json_match", "json_field_f1", "label_accuracy", "macro_f1", "rouge_l",
    "numeric_answer", "tool_call_match",
)  # fmt: skip
"""Metrics of two texts."""
BENCH_METRICS = ("json_schema_valid", "perplexity", "ece", "out_of_scope_recall")
"""Metrics that need more than two texts: a schema, probabilities, the answer that abstains."""
ACCURACY_METRICS = (*(name for name in TASK_METRICS if name != "json_valid"), "out_of_scope_recall")
"""Shares of right answers; valid JSON can be wrong."""
DROP, GAIN = "_drop", "_gain"
"""Ends of the names of differences: what quantization cost a score, and what the file has over TF-IDF."""
SHARE, NUMBER, BYTES, MS, SECONDS, RATE = "share", "number", "bytes", "ms", "s", "tokens/s"
UNITS: dict[str, dict[str, float]] = {
    SHARE: {"": 1, "%": 0.01},
    NUMBER: {"": 1},
    BYTES: {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    MS: {"": 1, "us": 1e-3, "ms": 1, "s": 1e3},
    SECONDS: {"": 1, "us": 1e-6, "ms": 1e-3, "s": 1},
    RATE: {"": 1, "tokens/s": 1},
}
SPEED_UNITS = (MS, SECONDS, RATE)
"""Units of what depends on the machine: such a number is compared with a baseline of the same machine only."""
OTHER_METRICS = {
    "kl_mean": NUMBER, "kl_p99": NUMBER, "top1_agreement": SHARE, "greedy_prefix": SHARE,
    "perplexity": NUMBER, "ece": NUMBER,
    "load_ms": MS, "prompt_tokens_per_s": RATE, "decode_tokens_per_s": RATE,
    "max_logit_difference": NUMBER, "texts_per_s_batch_1": NUMBER, "texts_per_s_batch_32": NUMBER,
    "cpu_s_per_token": SECONDS, "cpu_s_per_prompt_token": SECONDS, "energy_j_per_token": NUMBER,
    "peak_rss_bytes": BYTES, "peak_pss_bytes": BYTES, "size_bytes": BYTES, "bundle_bytes": BYTES,
    **{f"{name}_p{q}": MS for name in ("reload_ms", "ttft_ms", "itl_ms", "e2e_ms") for q in (50, 90, 95, 99)},
}  # fmt: skip
MACHINE_METRICS = ("energy_j_per_token",)
SUFFIXES = {"_ms": MS, "_bytes": BYTES, "_tokens_per_s": RATE}
NUMBER_PATTERN = r"((?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
PATTERN = re.compile(r"(>=|<=|==|>|<)\s*(.+)")
ABSOLUTE = re.compile(rf"([-+]?){NUMBER_PATTERN}\s*([A-Za-z/%]*)")
SHARE_OF_BASELINE = re.compile(rf"{NUMBER_PATTERN}\s*(x|%)\s*(?:of\s+)?baseline")
MOVED_BASELINE = re.compile(rf"baseline(?:\s*([-+])\s*{NUMBER_PATTERN}\s*([A-Za-z/%]*))?")
FORMS = '">= 0.90", "<= 8MB", ">= 0.95x baseline" or "<= baseline + 0.005"'


@dataclass(frozen=True)
class Budget:
    """The limit is `factor` times the baseline's value plus `limit`, in the metric's own unit (`unit`); a factor of
    0 makes it absolute. `text` is what the person wrote."""

    metric: str
    text: str
    op: str
    limit: float
    unit: str
    factor: float = 0.0

    @property
    def of_the_machine(self) -> bool:
        """Whether the metric depends on the machine it is measured on."""
        return self.unit in SPEED_UNITS or self.metric.rpartition("/")[2] in MACHINE_METRICS

    @property
    def asks_for_accuracy(self) -> bool:
        """Whether only a model with right answers can meet it: a lower limit above 0 on a share of them, or one on what
        it has over TF-IDF."""
        name = self.metric.rpartition("/")[2]
        above = -1 if name.endswith(GAIN) else 0  # any gain is measured against right answers
        lower = self.op in (">=", ">", "==") and (self.limit > above or self.factor > 0)
        return lower and name.removesuffix(GAIN) in ACCURACY_METRICS

    def against(self, baseline: float) -> Self:
        """The same budget with the limit it has for this value of the baseline."""
        return replace(self, limit=self.factor * baseline + self.limit, factor=0.0)


def known_gate_metrics() -> dict[str, str]:
    """{metric: its unit} of everything a budget can be set on."""
    tasks = dict.fromkeys((*TASK_METRICS, "json_schema_valid", "out_of_scope_recall"), SHARE)
    return tasks | {name + end: SHARE for name in tasks for end in (DROP, GAIN)} | OTHER_METRICS


def score_of(metric: str) -> str:
    """The score that a budget's metric is about: `exact_match` for `exact_match_drop` and `nano-Q8_0/exact_match`."""
    return metric.rpartition("/")[2].removesuffix(DROP).removesuffix(GAIN)


def split_budget(text: str) -> tuple[str, str]:
    """`exact_match >= 0.9`, `exact_match: >= 0.9` and `exact_match=>= 0.9` as (metric, budget)."""
    match = re.fullmatch(r"\s*([^\s:=<>]+)\s*(?::|=(?!=|[<>](?!=)))?\s*(.*)", text, re.DOTALL)
    return (match[1], match[2].strip()) if match else (text.strip(), "")


def parse_budget(metric: str, text: str, measured: Collection[str] = ()) -> Budget:
    """Read one budget; a metric is known by its name or because it is among those `measured`.

    Raises UsageError for an unknown metric, a text of another form or a wrong unit.
    """
    unit = _unit_of(metric, measured)
    found = PATTERN.fullmatch(text.strip())
    if not found:
        raise _not_a_budget(metric, text)
    op, limit = found[1], found[2].strip()
    if match := SHARE_OF_BASELINE.fullmatch(limit):
        factor = float(match[1]) * (0.01 if match[2] == "%" else 1)
        return Budget(metric, text.strip(), op, 0.0, unit, factor)
    if match := MOVED_BASELINE.fullmatch(limit):
        moved = 0.0 if match[2] is None else _scaled(metric, text, unit, *match.groups())
        return Budget(metric, text.strip(), op, moved, unit, 1.0)
    if match := ABSOLUTE.fullmatch(limit):
        value = _scaled(metric, text, unit, *match.groups())
        _check_range(metric, text, unit, value)
        return Budget(metric, text.strip(), op, value, unit)
    raise _not_a_budget(metric, text)


def _unit_of(metric: str, measured: Collection[str]) -> str:
    known = known_gate_metrics()
    name = metric.rpartition("/")[2]
    if name in known:
        return known[name]
    if metric in measured:
        return next((unit for suffix, unit in SUFFIXES.items() if name.endswith(suffix)), NUMBER)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(f"gate.{metric}: unknown metric; {hint}known: {', '.join(known)}")


def _scaled(metric: str, text: str, unit: str, sign: str, number: str, suffix: str) -> float:
    scales = UNITS[unit]
    if suffix not in scales:
        allowed = ", ".join(name for name in scales if name) or "no unit"
        raise UsageError(f"gate.{metric}: {text!r}: unknown unit {suffix!r} for this metric; use {allowed}")
    value = float(f"{sign}{number}") * scales[suffix]
    if not math.isfinite(value):
        raise _not_a_budget(metric, text)
    return value


def _check_range(metric: str, text: str, unit: str, value: float) -> None:
    """Raise UsageError for a limit that no measurement can reach, or none can miss."""
    if unit == SHARE:
        low = -1 if metric.endswith((DROP, GAIN)) else 0
        if not low <= value <= 1:
            percent = f", or {value:g}%" if 1 < value <= 100 else ""
            meant = f"; did you mean {value / 100:g}{percent}?" if 1 < value <= 100 else ""
            raise UsageError(f"gate.{metric}: {text!r}: it is a share from {low} to 1, never {value:g}{meant}")
    elif value < 0:
        raise UsageError(f"gate.{metric}: {text!r}: it is never below 0")


def _not_a_budget(metric: str, text: str) -> UsageError:
    if text.lstrip().startswith(("=>", "=<")):
        right = text.lstrip()[1] + "=" + text.lstrip()[2:]
        return UsageError(f"gate.{metric}: {text!r} is not a budget; write {right!r}: the sign comes before the =")
    return UsageError(f"gate.{metric}: {text!r} is not a budget; write one like {FORMS}")
