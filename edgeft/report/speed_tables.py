"""How fast and how large: every measured file side by side, the shipped one's speed, and the machine."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from edgeft.report.accuracy_tables import score_text
from edgeft.report.numbers import milliseconds, plural, size, three
from edgeft.report.table import Table


def candidates_table(found: Mapping[str, Any]) -> Table:
    """One row for each measured file."""
    rows: list[tuple[str, ...]] = [
        (
            row["label"] + (" *" if row["ships"] else ""),
            size(row["size_bytes"]),
            score_text(row) if row["value"] is not None else "-",
            _or_dash(row["decode_tokens_per_s"], three),
            _or_dash(row["ttft_ms_p95"], milliseconds),
            _or_dash(row["kl_mean"], three),
            "" if row["front"] else "beaten",
        )
        for row in found["rows"]
    ]
    columns = ("", ">size", f">{found['metric'] or 'score'}", ">tok/s", ">TTFT p95", ">KL", "")
    notes = ["*: the file that ships; beaten: another file is as good in score, size and speed, and better in one"]
    if any(row["noisy"] for row in found["rows"]):
        notes.append("Speeds were measured while the machine was disturbed: small differences mean nothing")
    return Table("Files side by side", columns, rows, notes, shrinks=0)


def machine_table(latency: Mapping[str, Any]) -> Table:
    """Where the speed was measured, and what disturbed it."""
    host, noise = latency["host"], latency.get("noise") or {}
    memory = host.get("memory_bytes")
    facts = {
        "processor": host.get("cpu"),
        "instruction sets": " ".join(host.get("instruction_sets", ())) or None,
        "kernels": "; ".join(f"{name}: {what}" for name, what in host.get("kernels", {}).items()) or None,
        "cores": host.get("n_cores"),
        "threads": host.get("n_threads"),
        "memory": size(memory) if memory else None,
        "system": host.get("os"),
        "python": host.get("python"),
        "governor": host.get("governor"),
        "turbo": host.get("turbo"),
        "context": host.get("n_ctx"),
        "load before and after": f"{host.get('load_average_before')}, {host.get('load_average_after')}",
        "stolen time": _percent(noise.get("steal_share")),
        "other processes": _percent(noise.get("others_share")),
        "spread of repetitions": _percent(noise.get("median_spread")),
        "file in page cache before": _percent((latency.get("page_cache") or {}).get("cached_share_before")),
        "energy": (latency.get("energy") or {}).get("absent") or "counted",
    }
    rows: list[tuple[str, ...]] = [
        (name, "not known" if value is None else str(value)) for name, value in facts.items()
    ]
    return Table("Machine", ("", ""), rows, [*noise.get("reasons", [])], shrinks=1, detail=True)


def definitions_table(definitions: Mapping[str, str]) -> Table:
    """What each number means."""
    return Table("Definitions", ("", ""), list(definitions.items()), shrinks=1, detail=True)


def latency_table(latency: Mapping[str, Any]) -> Table:
    """Times, rates and memory of the file that ships."""
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
        planned = latency.get("planned_runs") or 0
        cut = f" (of {planned} planned: more did not fit the time)" if latency["n_runs"] < planned else ""
        yield (
            f"{plural(latency['n_runs'], 'run')}{cut} of {latency['n_gen']} tokens after "
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


def _or_dash(value: float | None, write: Callable[[float], str]) -> str:
    return "-" if value is None else write(value)


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.1f} %"
