"""The child process of `latency.measure`: an order (JSON) comes on stdin, events (JSON lines) go to stdout.

{"event": "progress", "done": 3}
{"event": "error", "kind": "ModelError", "message": "..."}
{"event": "result", "measurement": {...}}
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from edgeft.bench import host
from edgeft.errors import EdgeftError, RuntimeFault, UsageError

if TYPE_CHECKING:
    from edgeft.runtime import Model

Load = Callable[[], "Model"]


def main() -> int:
    """Measure as ordered and return the exit code."""
    order = json.load(sys.stdin)
    events = _private_stdout()

    def say(event: str, **content: Any) -> None:
        print(json.dumps({"event": event, **content}), file=events, flush=True)

    try:
        say("result", measurement=_measure_file(order, lambda done: say("progress", done=done)))
    except EdgeftError as error:
        say("error", kind=type(error).__name__, message=str(error))
    return 0


def measure_model(
    load: Load, prompts: list[dict[str, Any]], plan: dict[str, int], report: Callable[[int], None]
) -> dict[str, Any]:
    """Load, run and time a model: the content of a `Measurement` but for the host and the size.

    `prompts` are Examples and `plan` is a LatencyPlan, as plain data; `report` gets the number of runs done,
    warm-up included. Raises UsageError when no prompt fits the context window.
    """
    model, load_ms = _timed(load)
    loads = [load_ms]
    try:
        fitting, left_out = _fitting(model, prompts, plan["n_gen"])
        runs: list[dict[str, Any]] = []
        done = 0
        for round_ in range(-plan["warmup"], plan["repetitions"]):
            for index in fitting:
                run = {"prompt": index, "repetition": round_, **_run(model, prompts[index], plan["n_gen"])}
                if round_ >= 0:
                    runs.append(run)
                done += 1
                report(done)
        settings = {"n_threads": model.n_threads, "n_ctx": model.n_ctx}
        peak = host.peak_rss_bytes()
    finally:
        model.close()
    for _ in range(plan["reloads"]):
        again, load_ms = _timed(load)
        again.close()
        loads.append(load_ms)
    return {
        "load_ms": loads,
        "runs": runs,
        "n_gen": plan["n_gen"],
        "left_out": left_out,
        "peak_rss_bytes": peak,
        "host": settings,
    }


def _measure_file(order: dict[str, Any], report: Callable[[int], None]) -> dict[str, Any]:
    path = Path(order["path"])
    before = host.load_average()

    def load() -> "Model":
        from edgeft import runtime  # inside the clock: an app pays for this import as well

        return runtime.load(path, n_ctx=order["n_ctx"], n_threads=order["n_threads"])

    measured = measure_model(load, order["prompts"], order["plan"], report)
    measured["host"] |= {
        **host.describe_host(),
        "backend": host.backend_versions(),
        "load_average_before": before,
        "load_average_after": host.load_average(),
    }
    return {**measured, "size_bytes": path.stat().st_size}


def _fitting(model: "Model", prompts: list[dict[str, Any]], n_gen: int) -> tuple[list[int], int]:
    """Indices of the prompts that fit the context window with n_gen tokens, and how many do not."""
    lengths = [len(model.tokenize(_render(model, prompt))) for prompt in prompts]
    fitting = [index for index, length in enumerate(lengths) if length + n_gen <= model.n_ctx]
    if not fitting:
        raise UsageError(
            f"no prompt leaves room for {n_gen} tokens in a context of {model.n_ctx} (shortest prompt: "
            f"{min(lengths, default=0)} tokens); raise bench.n_ctx or lower bench.latency.n_gen"
        )
    return fitting, len(prompts) - len(fitting)


def _run(model: "Model", prompt: dict[str, Any], n_gen: int) -> dict[str, Any]:
    """One prompt answered once: the content of a `Run` but for its place."""
    started = time.perf_counter()
    ids = model.tokenize(_render(model, prompt))
    tokenized = time.perf_counter()
    times = [time.perf_counter() for _ in model.stream(ids, max_new_tokens=n_gen, ignore_eos=True)]
    if len(times) != n_gen:
        raise RuntimeFault(f"the runtime generated {len(times)} tokens instead of {n_gen}")
    return {
        "n_prompt": len(ids),
        "ttft_ms": _ms(times[0] - started),
        "prefill_ms": _ms(times[0] - tokenized),
        "itl_ms": [_ms(after - before) for before, after in itertools.pairwise(times)],
    }


def _render(model: "Model", prompt: dict[str, Any]) -> str:
    return model.render(list(prompt["prompt"]), tools=prompt["tools"])


def _timed(load: Load) -> tuple["Model", float]:
    started = time.perf_counter()
    return load(), _ms(time.perf_counter() - started)


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 5)


def _private_stdout() -> TextIO:
    """The real stdout for events only; whatever the backend prints goes to stderr from here on."""
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return events


if __name__ == "__main__":
    sys.exit(main())
