"""Disk, memory, GPU, what was measured before, huge pages, and what would reach the network."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edgeft.doctor.finding import Finding, size

LITTLE_DISK_BYTES, NO_DISK_BYTES = 5e9, 2e8
LITTLE_MEMORY_BYTES, NO_MEMORY_BYTES = 2e9, 3e8
HUGE_PAGES = "sys/kernel/mm/transparent_hugepage/enabled"
PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def check_disk(places: Mapping[str, tuple[Path, float | None, bool]]) -> Finding:
    """`places`: {what lies there: (folder, free bytes or None, whether it can be written)}."""
    texts, facts, wrong = [], {}, []
    little = False
    for what, (folder, free, writable) in places.items():
        facts[what] = {"folder": str(folder), "free_bytes": free, "writable": writable}
        texts.append(f"{what} {size(free)} free" if free is not None else f"{what} not known")
        little |= free is not None and free < LITTLE_DISK_BYTES
        if not writable:
            wrong.append(f"{folder} ({what}) cannot be written")
        elif free is not None and free < NO_DISK_BYTES:
            wrong.append(f"{folder} ({what}) is full")
    text = ", ".join(texts)
    if wrong:
        advice = "free space or choose other folders: --workdir, XDG_CACHE_HOME, TMPDIR"
        return Finding("disk", "broken", f"{text}; {'; '.join(wrong)}", advice, facts)
    return Finding("disk", "note" if little else "ok", text, "", facts)


def check_memory(root: Path = Path("/")) -> Finding:
    """What the system has and what is free, at most what the control group of this process may use."""
    total, free = _meminfo(root)
    limits = [_number(root / "sys/fs/cgroup" / name) for name in ("memory.max", "memory/memory.limit_in_bytes")]
    limit = min((value for value in limits if value is not None), default=None)
    if limit is not None and total is not None and limit < total:
        total, free = limit, min(free, limit) if free is not None else limit
    facts = {"total_bytes": total, "available_bytes": free}
    if total is None or free is None:
        return Finding("memory", "note", "not known on this system", "", facts)
    text = f"{size(free)} of {size(total)} available"
    if free < NO_MEMORY_BYTES:
        return Finding("memory", "broken", text, "end other programs: not even the embedded model runs in this", facts)
    return Finding("memory", "note" if free < LITTLE_MEMORY_BYTES else "ok", text, "", facts)


def check_gpu(torch: Mapping[str, Any] | None, driver: bool) -> Finding:
    """`torch`: what its child said, None without torch; `driver`: whether NVIDIA's driver is there."""
    devices = list(torch.get("gpus", ())) if torch else []
    facts = {"gpus": devices, "driver": driver}
    if devices:
        text = ", ".join(f"{device['name']} ({size(device['memory_bytes'])})" for device in devices)
        return Finding("gpu", "ok", text, "", facts)
    if driver and torch is not None:
        advice = "install torch with CUDA (README, Without make), or leave it: everything runs on the processor"
        return Finding("gpu", "note", "NVIDIA's driver is here, and this torch cannot use it", advice, facts)
    return Finding("gpu", "ok", "none; everything runs on the processor", "", facts)


def check_measured(folder: Path, now: float | None = None) -> Finding:
    """What was measured of this machine before and is remembered in the cache `folder`."""
    now = time.time() if now is None else now
    files, damaged = {}, []
    for path in sorted(folder.glob("*.json")):
        try:
            json.loads(path.read_bytes())
        except (OSError, ValueError):
            damaged.append(path.name)
            continue
        files[path.name] = round(max(0.0, now - path.stat().st_mtime) / 86400, 1)
    facts = {"folder": str(folder), "age_days": files, "damaged": damaged}
    if damaged:
        names = ", ".join(damaged)
        return Finding("measured", "note", f"damaged, so measured again: {names} in {folder}", "", facts)
    if not files:
        return Finding("measured", "ok", "nothing yet; a run measures what it needs, once", "", facts)
    kinds: dict[str, float] = {}
    for name, days in files.items():
        kind = re.sub(r"-[0-9a-f]{16}$", "", Path(name).stem)
        kinds[kind] = min(days, kinds.get(kind, days))
    text = ", ".join(f"{kind} ({days:g} days ago)" for kind, days in kinds.items())
    return Finding("measured", "ok", f"{text}; to measure again, delete {folder}", "", facts)


def check_huge_pages(root: Path = Path("/")) -> Finding:
    """Whether weights may lie on huge pages, as ONNX decoding uses them."""
    try:
        found = re.search(r"\[(\w+)\]", (root / HUGE_PAGES).read_text("utf-8"))
    except OSError:
        found = None
    setting = found[1] if found else None
    facts = {"transparent_hugepage": setting}
    if setting is None:
        return Finding("huge pages", "ok", "not on this system; they only make ONNX decoding faster", "", facts)
    if setting == "never":
        advice = "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
        return Finding("huge pages", "note", "switched off; ONNX decoding is a little slower", advice, facts)
    return Finding("huge pages", "ok", f"{setting}; ONNX weights use them", "", facts)


def check_network(
    environment: Mapping[str, str], telemetry: bool | None, sockets: Mapping[str, Sequence[str]]
) -> Finding:
    """What would leave this machine.

    `telemetry`: whether onnxruntime's is on in edgeft's processes, None without onnxruntime; `sockets`: {library:
    internet sockets its child had open}. Credentials in a proxy's address are not shown.
    """
    proxies = {name.lower(): _host(value) for name, value in environment.items() if value and name.lower() in PROXIES}
    offline = environment.get("HF_HUB_OFFLINE", "1").upper() in ("1", "TRUE", "ON", "YES")
    endpoint = environment.get("HF_ENDPOINT", "")
    facts: dict[str, Any] = {
        "hub_offline": offline,
        "hub_endpoint": _host(endpoint) if endpoint else None,
        "proxies": proxies,
        "onnxruntime_telemetry": telemetry,
        "sockets": {library: list(found) for library, found in sockets.items()},
    }
    notes = []
    if not offline:
        where = f" ({_host(endpoint)})" if endpoint else ""
        notes.append(
            f"HF_HUB_OFFLINE={environment['HF_HUB_OFFLINE']}: a model's name may be looked up on the hub{where}"
        )
    if telemetry:
        notes.append("onnxruntime's telemetry is on; ORT_DISABLE_TELEMETRY=1 stops it")
    notes += [f"{library} opened {', '.join(found)}" for library, found in sockets.items() if found]
    if proxies:
        notes.append(f"proxies are set: {', '.join(f'{name} {host}' for name, host in proxies.items())}")
    text = "; ".join(notes) or "nothing reaches it: the hub is off, and no library opened a socket"
    advice = "unset HF_HUB_OFFLINE to stay offline" if not offline else ""
    reaches = not offline or bool(telemetry) or any(sockets.values())
    return Finding("network", "note" if reaches else "ok", text, advice, facts)


def _meminfo(root: Path) -> tuple[int | None, int | None]:
    """Bytes of memory and of what is available."""
    try:
        text = (root / "proc/meminfo").read_text("utf-8")
    except OSError:
        return None, None
    found = {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    return found.get("MemTotal"), found.get("MemAvailable", found.get("MemFree"))


def _number(path: Path) -> int | None:
    try:
        text = path.read_text("utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _host(address: str) -> str:
    """Host and port of `address`, without name and password."""
    try:
        parts = urlsplit(address if "//" in address else f"//{address}")
        return f"{parts.hostname or '?'}{f':{parts.port}' if parts.port else ''}"
    except ValueError:
        return "?"
