"""What `edgeft.runtime` adds to llama.cpp in an application that starts, answers one chat and ends.

    python benchmarks/runtime_overhead.py [--model FILE ...] [--rounds 15] [--threads 1]

Fresh processes, interleaved, greedy; without --model the embedded base as Q4_K_M.

- `chat`: import, load, one answer of 32 tokens, against `minimal_llama.py`, which gets the prompt rendered and gives
  the same text. Wall time of the whole process and its peak RSS; processor time, which other work disturbs less.
- `prefix`: a system prompt of 500 tokens. Time to the first token of a process's first answer (`ttft_ms`, from the
  call) with the state on disk against without, and the whole process. Another process has filled the cache before;
  the answers are the same.
- `import`: `import edgeft.runtime` as `-X importtime` adds it up, and processes with it against bare ones.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edgeft.artifact import write_atomic
from edgeft.bench.host import describe_host, versions
from edgeft.console import silent_log

HERE = Path(__file__).resolve().parent
NANO = HERE.parent / "edgeft" / "assets" / "nano"
MINIMAL = HERE / "minimal_llama.py"
N_CTX, N_NEW, N_SYSTEM = 1024, 32, 500
BRIEF = {"role": "system", "content": "You are a helpful assistant that answers in full sentences."}
USER = {"role": "user", "content": "Write a poem about the sea."}
SYSTEM = "You are the assistant of a house. Turn on the lights, set timers, play music by the piano, keep lists. "
APPLICATION = """
import json, sys, time
from edgeft import runtime
order = json.loads(sys.stdin.read())
with runtime.load(order["file"], n_ctx=order["n_ctx"], n_threads=order["n_threads"],
                  cache_dir=order.get("cache")) as model:
    answer = model.chat(order["messages"], max_new_tokens=order["n_new"])
    print(json.dumps({"text": answer.text, "n_new": answer.n_new, "ttft_ms": answer.ttft_ms}))
"""
LIMITS = {"chat_wall": 1.10, "chat_rss": 1.15, "prefix_ttft": 0.35, "import_ms": 60.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, nargs="+", help="GGUF files. [the embedded base as Q4_K_M]")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "runtime_overhead.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        files = arguments.model or [make_nano(Path(scratch))]
        models = {file.stem: measured(file, Path(scratch), arguments) for file in files}
    importing = import_times(arguments.rounds)
    result = {
        "host": describe_host(),
        "backend": versions(["llama-cpp-python"]),
        "settings": {"rounds": arguments.rounds, "threads": arguments.threads, "n_ctx": N_CTX, "n_new": N_NEW},
        "load": os.getloadavg()[0],
        "limits": LIMITS,
        "models": models,
        "import": importing,
    }
    write_atomic(arguments.out, json.dumps(result, indent=2) + "\n")
    summary = {name: model["ratios"] for name, model in models.items()}
    print(json.dumps({"ratios": summary, "import_ms": importing["import_ms"], "limits": LIMITS}, indent=2))


def make_nano(folder: Path) -> Path:
    """The embedded base as Q4_K_M, in `folder`."""
    from edgeft.export.gguf import write_gguf

    path = folder / "nano-Q4_K_M.gguf"
    write_gguf(NANO, path, ftype="Q4_K_M", name="nano", provenance={}, log=silent_log())
    return path


def measured(file: Path, scratch: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs of one file and their ratios."""
    order = {
        "file": str(file),
        "n_ctx": N_CTX,
        "n_threads": arguments.threads,
        "n_new": N_NEW,
        "messages": [BRIEF, USER],
    }
    prompt, long = prompts(file)
    cold = order | {"messages": long, "n_new": 1}
    warm = cold | {"cache": str(scratch / f"{file.stem}-cache")}
    application = [sys.executable, "-c", APPLICATION]
    peer = [sys.executable, str(MINIMAL), *map(str, (file, N_CTX, arguments.threads, N_NEW))]
    calls = {
        "minimal": (peer, prompt),
        "edgeft": (application, json.dumps(order)),
        "without": (application, json.dumps(cold)),
        "with": (application, json.dumps(warm)),
    }
    for command, given in calls.values():  # files into memory, the cache onto the disk
        process(command, given)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in calls}
    for _ in range(arguments.rounds):
        for name, (command, given) in calls.items():
            runs[name].append(process(command, given))
    for ours, theirs in (("edgeft", "minimal"), ("with", "without")):
        if {run["text"] for run in runs[ours]} != {run["text"] for run in runs[theirs]}:
            raise SystemExit(f"{file}: {ours} and {theirs} do not answer the same")
    median = {
        name: {
            key: statistics.median(run[key] for run in rows)
            for key in ("wall_ms", "cpu_ms", "rss_bytes", "ttft_ms", "n_new")
        }
        for name, rows in runs.items()
    }
    return {"ratios": ratios(median), "median": median, "runs": runs}


def ratios(median: dict[str, dict[str, float]]) -> dict[str, float]:
    """Of the medians: ours to the peer's, with the cache to without."""
    pairs = {
        "chat_wall": ("edgeft", "minimal", "wall_ms"),
        "chat_cpu": ("edgeft", "minimal", "cpu_ms"),
        "chat_rss": ("edgeft", "minimal", "rss_bytes"),
        "prefix_ttft": ("with", "without", "ttft_ms"),
        "prefix_wall": ("with", "without", "wall_ms"),
    }
    return {name: median[ours][key] / median[theirs][key] for name, (ours, theirs, key) in pairs.items()}


def prompts(file: Path) -> tuple[str, list[dict[str, str]]]:
    """The rendered chat, and one behind a system prompt of N_SYSTEM tokens."""
    from edgeft import runtime

    with runtime.load(file, n_ctx=N_CTX, n_threads=1) as model:
        ids = (model.tokenize(SYSTEM) * N_SYSTEM)[:N_SYSTEM]
        return model.render([BRIEF, USER]), [{"role": "system", "content": model.detokenize(ids)}, USER]


def process(command: list[str], given: str) -> dict[str, Any]:
    """One fresh process: what it prints, its wall time and its peak RSS."""
    started = time.perf_counter()
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE.parent)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(given)
    child.stdin.close()
    printed = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall_ms = (time.perf_counter() - started) * 1e3
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{command[1]} ended with {child.returncode}")
    found = json.loads(printed) if printed else {}
    cpu_ms = (usage.ru_utime + usage.ru_stime) * 1e3
    return {"ttft_ms": 0.0, **found, "wall_ms": wall_ms, "cpu_ms": cpu_ms, "rss_bytes": usage.ru_maxrss * 1024}


def import_times(rounds: int) -> dict[str, Any]:
    """Milliseconds of the import by Python's own count, and of whole processes with it and without."""
    counted, with_it, bare = [], [], []
    for _ in range(rounds):
        command = [sys.executable, "-X", "importtime", "-c", "import edgeft.runtime"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE.parent).stderr
        totals = re.findall(r"\|\s+(\d+) \| edgeft(?:\.runtime)?$", lines, re.MULTILINE)
        counted.append(sum(map(int, totals)) / 1e3)
        with_it.append(process([sys.executable, "-c", "import edgeft.runtime"], "")["wall_ms"])
        bare.append(process([sys.executable, "-c", "pass"], "")["wall_ms"])
    return {
        "import_ms": statistics.median(counted),
        "process_ms": statistics.median(with_it) - statistics.median(bare),
        "runs": {"importtime_ms": counted, "with_ms": with_it, "bare_ms": bare},
    }


if __name__ == "__main__":
    main()
