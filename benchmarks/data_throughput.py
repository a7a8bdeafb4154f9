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
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
LETTERS = b"abcdefghijklmnopqrstuvwxyz"
BLOCK_BYTES = 20e6
CODE = "\n```python\nprint(42)\n```"
KEPT = (
    b'{"messages"',
    b'{"role"',
    b': "user", "content"',
    b': "assistant", "content"',
    json.dumps(CODE).encode()[1:-1],
)
CHILD = """
import json, sys, time
from pathlib import Path
from edgeft.console import silent_log
from edgeft.data.check.engine import Job, check
if __name__ == "__main__":
    start = time.perf_counter()
    result = check(Job([Path(sys.argv[1])], near=sys.argv[2] == "near", workers=int(sys.argv[3])), silent_log())
    wall = time.perf_counter() - start
    print(json.dumps({"wall_s": wall, "examples": result.files[0].n_examples, "counts": result.counts}))
"""


def generate(path: Path, n_bytes: float) -> None:
    """A block of conversations, then the same block again and again with its letters exchanged: every
    conversation is different, and a gigabyte takes seconds."""
    picker = random.Random(5)
    block = b"".join(_conversations(picker, BLOCK_BYTES))
    written = 0
    with path.open("wb") as file:
        while written < n_bytes:
            shuffled = picker.sample(LETTERS, len(LETTERS))
            table = bytes.maketrans(bytes(LETTERS), bytes(shuffled))
            body = block.translate(table)
            for piece in KEPT:
                body = body.replace(piece.translate(table), piece)
            file.write(body)
            written += len(body)


def _conversations(picker: random.Random, n_bytes: float) -> Iterator[bytes]:
    """Two to four turns each, some with code and letters beyond ASCII."""
    words = ["".join(picker.choices(LETTERS.decode(), k=picker.randint(2, 9))) for _ in range(20_000)]
    words += ["caf\u00e9", "gr\u00f6\u00dfer"]
    written = 0
    while written < n_bytes:
        texts = [" ".join(picker.choices(words, k=picker.choice((12, 30, 60)))) for _ in range(4)]
        turns = [{"role": "user" if at % 2 == 0 else "assistant", "content": t + "."} for at, t in enumerate(texts)]
        if written % 50 == 0:
            turns[1]["content"] += CODE
        line = (json.dumps({"messages": turns[: picker.choice((2, 4, 4))]}, ensure_ascii=False) + "\n").encode()
        yield line
        written += len(line)


def measure(path: Path, near: bool, workers: int) -> dict[str, float]:
    """One check in a process of its own."""
    command = [sys.executable, "-c", CHILD, str(path), "near" if near else "no", str(workers)]
    peak = [0.0]
    cpu: dict[int, float] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        watcher = threading.Thread(target=_watch, args=(process, peak, cpu), daemon=True)
        watcher.start()
        output, _ = process.communicate()
    said = json.loads(output)
    size = path.stat().st_size / 1e6
    return said | {
        "megabytes": round(size, 1),
        "cpu_s": round(sum(cpu.values()), 2),
        "mb_per_s_wall": round(size / said["wall_s"], 2),
        "mb_per_s_on_free_cores": round(size / sum(cpu.values()) * workers, 2),
        "peak_rss_mb": round(peak[0] / 1e6, 1),
    }


def _watch(process: subprocess.Popen[str], peak: list[float], cpu: dict[int, float]) -> None:
    """The largest sum of resident memory over the process and its workers, and the processor time of each."""
    import psutil

    while process.poll() is None:
        total = 0
        try:
            parent = psutil.Process(process.pid)
            for one in (parent, *parent.children(recursive=True)):
                total += one.memory_info().rss
                times = one.cpu_times()
                cpu[one.pid] = times.user + times.system
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
