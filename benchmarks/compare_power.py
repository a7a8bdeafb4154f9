"""How often `edgeft compare` is wrong, and how often it finds a slowdown of one twentieth.

    python benchmarks/compare_power.py [--same 200] [--slow 50] [--jobs 1] [--out benchmarks/results/compare_power.json]

The embedded base in Q4_K_M, default settings. `same`: the file with itself; `slow`: the file with a model that
computes one of twenty tokens twice (compare_slow_child.py). Meanwhile 0 to 2 busy processes are switched on and off
at random times; with --jobs 2 another comparison is a load as well. Trials come in random order and the result is
written after each, so a run cut short is a fair sample; a later run goes on where the file stops.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from edgeft.artifact import write_atomic
from edgeft.bench.compare import WORKER, ComparePlan, Side, compare
from edgeft.bench.host import describe_host
from edgeft.bench.shares import wilson_interval
from edgeft.console import silent_log
from edgeft.export.gguf import write_gguf
from edgeft.export.gguf.quantize import quantize_gguf

ROOT = Path(__file__).resolve().parent.parent
NANO = ROOT / "edgeft" / "assets" / "nano"
SLOW_WORKER = (sys.executable, str(ROOT / "benchmarks" / "compare_slow_child.py"))
BUSY = tuple(  # both end when this process has, however it ended
    f"import os\nparent, block = os.getppid(), bytearray(64 << 20)\nwhile os.getppid() == parent: {work}"
    for work in ("sum(range(10_000))", "block[: 32 << 20] = block[32 << 20 :]")
)
LOAD_SECONDS = (0.2, 6.0)
"""Shortest and longest time the background load stays as it is."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--same", type=int, default=200)
    parser.add_argument("--slow", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "compare_power.json")
    arguments = parser.parse_args()
    trials = [("same", seed) for seed in range(arguments.same)] + [("slow", seed) for seed in range(arguments.slow)]
    random.Random(0).shuffle(trials)
    rows = json.loads(arguments.out.read_bytes())["trials"] if arguments.out.exists() else []
    done = {(row["kind"], row["seed"]) for row in rows}
    with tempfile.TemporaryDirectory() as folder, _switching_load(), ThreadPoolExecutor(arguments.jobs) as pool:
        file = _model_file(Path(folder))
        for row in pool.map(lambda trial: _trial(file, *trial), [trial for trial in trials if trial not in done]):
            rows.append(row)
            write_atomic(arguments.out, json.dumps(_result(rows), indent=1) + "\n")
            print(f"{len(rows)}/{len(trials)} {json.dumps(row)}", flush=True)
    print(json.dumps(_result(rows)["summary"], indent=1))


def _trial(file: Path, kind: str, seed: int) -> dict[str, Any]:
    started, load = time.perf_counter(), os.getloadavg()[0]
    b = Side("b", str(file), SLOW_WORKER if kind == "slow" else WORKER)
    found = compare(Side("a", str(file)), b, ComparePlan(seed=seed), log=silent_log())
    if found.failure is not None or found.interval is None:
        raise RuntimeError(f"{kind} {seed}: {found.failure}")
    return {
        "kind": kind,
        "seed": seed,
        "outcome": found.outcome,
        "ratio": round(found.interval.ratio, 5),
        "interval": [round(found.interval.low, 5), round(found.interval.high, 5)],
        "ratios": [round(ratio, 5) for ratio in found.ratios],
        "seconds": round(time.perf_counter() - started, 2),
        "load": round(load, 2),
    }


def _result(rows: list[dict[str, Any]]) -> dict[str, Any]:
    summary = {}
    for kind, wanted in (("same", ("faster", "slower")), ("slow", ("slower",))):
        chosen = [row for row in rows if row["kind"] == kind]
        hits = sum(row["outcome"] in wanted for row in chosen)
        if chosen:
            summary[kind] = {
                "n": len(chosen),
                "outcomes": dict(Counter(row["outcome"] for row in chosen)),
                f"called {' or '.join(wanted)}": hits / len(chosen),
                "wilson_95": [round(end, 4) for end in wilson_interval(hits, len(chosen))],
                "median_ratio": sorted(row["ratio"] for row in chosen)[len(chosen) // 2],
                "median_seconds": sorted(row["seconds"] for row in chosen)[len(chosen) // 2],
                "load": [min(row["load"] for row in chosen), max(row["load"] for row in chosen)],
            }
    return {"host": describe_host(), "summary": summary, "trials": rows}


def _model_file(folder: Path) -> Path:
    write_gguf(NANO, folder / "f16.gguf", ftype="F16", name="nano", provenance={}, log=silent_log())
    quantize_gguf(folder / "f16.gguf", folder / "nano.gguf", "Q4_K_M")
    return folder / "nano.gguf"


@contextlib.contextmanager
def _switching_load() -> Iterator[None]:
    """0 to 2 busy processes, changed at random times, while the block lasts."""
    ends = threading.Event()

    def switch() -> None:
        generator = random.Random()
        while not ends.is_set():
            busy = [
                subprocess.Popen([sys.executable, "-c", generator.choice(BUSY)]) for _ in range(generator.randrange(3))
            ]
            ends.wait(generator.uniform(*LOAD_SECONDS))
            for process in busy:
                process.kill()
                process.wait()

    thread = threading.Thread(target=switch)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()


if __name__ == "__main__":
    main()
