"""How fast `edgeft data check` reads chat JSONL, and in how much memory.

    python benchmarks/data_throughput.py --sizes 0.25 1 --workers 2

Writes conversations of about 1 kB made from a word list (every one different), checks them with and without
near duplicates, and records wall seconds, processor seconds of all processes, and the peak of the summed
resident memory. On a machine that does other work, bytes over processor seconds times workers is what an idle
one would reach; both are in results/data_throughput.json, with the load.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHILD = """
import json, resource, sys, time
from pathlib import Path
from edgeft.console import silent_log
from edgeft.data.check.engine import Job, check
if __name__ == "__main__":
    start = time.perf_counter()
    result = check(Job([Path(sys.argv[1])], near=sys.argv[2] == "near", workers=int(sys.argv[3])), silent_log())
    wall = time.perf_counter() - start
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(u.ru_utime + u.ru_stime for u in used)
    print(json.dumps({"wall_s": wall, "cpu_s": cpu, "examples": result.files[0].n_examples, "counts": result.counts}))
"""


def generate(path: Path, n_bytes: float) -> None:
    """Conversations of two to four turns, some with code, digits and letters beyond ASCII."""
    picker = random.Random(5)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(picker.choices(letters, k=picker.randint(2, 9))) for _ in range(20_000)] + ["café", "größer"]
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < n_bytes:
            texts = [" ".join(picker.choices(words, k=picker.choice((12, 30, 60)))) for _ in range(4)]
            turns = [{"role": "user" if at % 2 == 0 else "assistant", "content": t + "."} for at, t in enumerate(texts)]
            if written % 50 == 0:
                turns[1]["content"] += "\n```python\nprint(42)\n```"
            line = json.dumps({"messages": turns[: picker.choice((2, 4, 4))]}, ensure_ascii=False) + "\n"
            file.write(line)
            written += len(line.encode())


def measure(path: Path, near: bool, workers: int) -> dict[str, float]:
    """One check in a process of its own."""
    command = [sys.executable, "-c", CHILD, str(path), "near" if near else "no", str(workers)]
    peak = [0.0]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        watcher = threading.Thread(target=_watch, args=(process, peak), daemon=True)
        watcher.start()
        output, _ = process.communicate()
    said = json.loads(output)
    size = path.stat().st_size / 1e6
    return said | {
        "megabytes": round(size, 1),
        "mb_per_s_wall": round(size / said["wall_s"], 2),
        "mb_per_s_on_free_cores": round(size / said["cpu_s"] * workers, 2),
        "peak_rss_mb": round(peak[0] / 1e6, 1),
    }


def _watch(process: subprocess.Popen[str], peak: list[float]) -> None:
    """The largest sum of resident memory over the process's session."""
    import psutil

    while process.poll() is None:
        total = 0
        try:
            parent = psutil.Process(process.pid)
            for one in (parent, *parent.children(recursive=True)):
                total += one.memory_info().rss
        except psutil.Error:
            pass
        peak[0] = max(peak[0], total)
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.25, 1.0], help="gigabytes")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(os.environ.get("TMPDIR", "/tmp")))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "data_throughput.json")
    arguments = parser.parse_args()
    runs = []
    for gigabytes in arguments.sizes:
        path = arguments.folder / f"edgeft-throughput-{gigabytes:g}.jsonl"
        if not path.exists():
            generate(path, gigabytes * 1e9)
        for near in (False, True):
            runs.append({"near": near, "load": os.getloadavg()[0]} | measure(path, near, arguments.workers))
            print(json.dumps(runs[-1]), flush=True)
    result = {"workers": arguments.workers, "cores": os.cpu_count(), "runs": runs}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
