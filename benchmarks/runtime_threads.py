"""One model shared by many threads, and opened and closed many times.

    python benchmarks/runtime_threads.py [--threads 16] [--generations 200] [--cycles 1000] [--gguf FILE] [--onnx DIR]

Without files: the embedded base as Q4_K_M and as int4 ONNX.

- `shared`: every thread asks for its share of different chats, tool calls, streams, constrained answers and labels,
  all greedy or with a seed. `equal`: answers that are what the same call gives alone. `waits_ms`: for an answer.
- `cycles`: load, three tokens, close, in a process of its own; resident memory after the first tenth against after
  the last cycle.
- `cancel`: tokens that a stream still gives once it is cancelled from another thread.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from constrained_output import HERE, make_gguf, make_onnx

from edgeft import runtime
from edgeft.artifact import write_atomic
from edgeft.bench.host import describe_host, versions

SUBJECTS = ("the light in the kitchen", "some music", "a timer", "the weather in Paris", "milk, bread and 12 eggs")
VERBS = ("turn on", "stop", "tell me about", "add", "what is")
SCHEMA = {
    "type": "object",
    "properties": {"tool": {"enum": ["lights", "music"]}, "text": {"type": "string", "maxLength": 12}},
    "required": ["tool", "text"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "lights", "parameters": {"type": "object", "properties": {}}}}]
MEMORY_LIMIT = 1.03


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, help="[the embedded base as Q4_K_M]")
    parser.add_argument("--onnx", type=Path, help="[the embedded base as int4]")
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--generations", type=int, default=200, help="Of each thread.")
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "runtime_threads.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        paths = {
            "llama.cpp": arguments.gguf or make_gguf(Path(scratch)),
            "onnxruntime": arguments.onnx or make_onnx(Path(scratch)),
        }
        backends = {
            name: {
                "shared": shared(path, arguments.threads, arguments.generations),
                "cancel": cancelled(path),
                "cycles": in_a_process(opened_and_closed, path, arguments.cycles),
            }
            for name, path in paths.items()
        }
    settings = {name: getattr(arguments, name) for name in ("threads", "generations", "cycles")}
    result = {
        "host": describe_host(),
        "backend": versions(["llama-cpp-python", "onnxruntime", "llguidance"]),
        "settings": settings | {"memory_limit": MEMORY_LIMIT},
        "load": os.getloadavg()[0],
        "backends": backends,
    }
    write_atomic(arguments.out, json.dumps(result, indent=2) + "\n")
    print(json.dumps(backends, indent=2))


def ask(model: runtime.Model, number: int) -> Any:
    """The call with this number: its kind, its text and its options all come from it."""
    text = f"{VERBS[number % 5]} {SUBJECTS[number // 5 % 5]} {number % 7}"
    messages = [{"role": "user", "content": text}]
    if number % 6 == 0:
        return tuple(model.stream(model.tokenize(text), max_new_tokens=12, ignore_eos=True))
    if number % 6 == 1:
        return model.classify(text, ["lights", "music", "weather", "list"]).probabilities
    if number % 6 == 2:
        return model.chat(messages, schema=SCHEMA, max_new_tokens=48).text
    if number % 6 == 3:
        return model.chat(messages, max_new_tokens=24, temperature=0.8, top_p=0.9, seed=number).text
    if number % 6 == 4:
        with model.chat(messages, max_new_tokens=24, stream=True, tools=TOOLS) as stream:
            return "".join(stream)
    return model.chat(messages, max_new_tokens=24).text


def shared(path: Path, n_threads: int, n_each: int) -> dict[str, Any]:
    """Answers of threads that share a model against those of one that has it alone."""
    with runtime.load(path, n_ctx=512, n_threads=1) as model:
        started = time.perf_counter()
        alone = [ask(model, number) for number in range(n_threads * n_each)]
        alone_s = time.perf_counter() - started
        waits: list[float] = []

        def work(thread: int) -> list[bool]:
            equal = []
            for number in range(thread, n_threads * n_each, n_threads):
                begun = time.perf_counter()
                equal.append(ask(model, number) == alone[number])
                waits.append((time.perf_counter() - begun) * 1e3)
            return equal

        started = time.perf_counter()
        with ThreadPoolExecutor(n_threads) as pool:
            found = [each for thread in pool.map(work, range(n_threads)) for each in thread]
        together_s = time.perf_counter() - started
    return {
        "n": len(found),
        "equal": sum(found),
        "alone_s": alone_s,
        "together_s": together_s,
        "waits_ms": {"median": statistics.median(waits), "max": max(waits)},
    }


def cancelled(path: Path, times: int = 20) -> dict[str, int]:
    """Most tokens that came after a cancellation which another thread had finished making."""
    worst = 0
    with runtime.load(path, n_ctx=512, n_threads=1) as model:
        for number in range(times):
            event, done = threading.Event(), threading.Event()
            ids = model.tokenize(f"{VERBS[number % 5]} {SUBJECTS[0]}")
            threading.Timer(0.01, lambda event=event, done=done: (event.set(), done.set())).start()
            stream = model.stream(ids, max_new_tokens=10_000, ignore_eos=True, cancel=event)
            worst = max(worst, sum(done.is_set() for _ in stream))
    return {"times": times, "tokens_after": worst}


def in_a_process(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What `function` returns in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def opened_and_closed(path: Path, cycles: int) -> dict[str, Any]:
    """Resident memory over cycles of load, generate and close."""
    process, rss = psutil.Process(), []
    for _ in range(cycles):
        with runtime.load(path, n_ctx=512, n_threads=1) as model:
            model.generate([5, 6, 7], max_new_tokens=3)
        rss.append(process.memory_info().rss)
    first = rss[max(0, cycles // 10 - 1)]
    return {"n": cycles, "first_bytes": first, "last_bytes": rss[-1], "ratio": rss[-1] / first, "peak_bytes": max(rss)}


if __name__ == "__main__":
    main()
