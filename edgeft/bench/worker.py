"""The child process that loads models: an order (one line of JSON) comes on stdin, events (JSON lines) go to stdout.

{"event": "loaded", "load_ms": 41.2, "host": {...}, ...}
{"event": "progress", "done": 3}
{"event": "run", "run": {...}}                                    task speed: a `latency.Run`
{"event": "answer", "answer": {...}}                              task answers: an `accuracy.Answer`
{"event": "measured", ...}                                        task speed: what is known when all runs are done
{"event": "error", "kind": "ModelError", "message": "..."}        the last event, or
{"event": "done"}
"""

import itertools
import json
import os
import random
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from edgeft.bench import backends, energy, host, memory
from edgeft.bench.backends import Backend, Setup
from edgeft.bench.noise import Watch
from edgeft.bench.passes import TimeLimit
from edgeft.errors import EdgeftError, RuntimeFault, UsageError
from edgeft.machine import process

if TYPE_CHECKING:
    from edgeft.bench.backends import Runner

Load = Callable[[], "Runner"]
Say = Callable[..., None]
Task = Callable[[dict[str, Any], Setup, Say], None]
WARM_UP_SHARE = 0.25


def main(tasks: Mapping[str, Task] | None = None) -> int:
    """Do as ordered, one of `tasks` by its name (None: TASKS), and return the exit code."""
    order = json.loads(sys.stdin.readline())
    events = _private_stdout()

    def say(event: str, **content: Any) -> None:
        print(json.dumps({"event": event, **content}), file=events, flush=True)

    try:
        setup = Setup.from_json(order["setup"])
        host.pin(setup.cpus)  # before any library starts its threads
        (tasks or TASKS)[order["task"]](order, setup, say)
        say("done")
    except EdgeftError as error:
        say("error", kind=type(error).__name__, message=str(error))
    return 0


@dataclass(frozen=True)
class Case:
    """A prompt to time: `n_gen` tokens are generated after the ids that `ids()` makes inside the clock."""

    index: int
    n_gen: int
    ids: Callable[[], list[int]]


def _speed(order: dict[str, Any], setup: Setup, say: Say) -> None:
    path, plan, limit = Path(order["path"]), order["plan"], TimeLimit(order.get("seconds"))
    backend, load = opener(path, setup)
    page_cache = forget(path)
    before = process.load_average()
    model, load_ms = timed(load)
    work = backend.work(path, model)
    facts = host_facts(backend, setup, model, before)
    try:
        cases, left_out = cases_of(model, order["prompts"], plan)
        say(
            "loaded",
            load_ms=load_ms,
            page_cache=page_cache,
            host=facts,
            n_gen=max(case.n_gen for case in cases),
            left_out=left_out,
            work=work and asdict(work),
            size_bytes=memory.size_bytes(path),
            bundle_bytes=memory.bundle_bytes(path),
        )
        counted = run_cases(model, cases, plan, say, gpu=setup.uses_gpu, limit=limit)
        peak = process.peak_rss_bytes()
    finally:
        model.close()
    after = {"load_average_after": process.load_average()}
    loads = [load_ms, *(_loaded_again(load) for _ in range(plan["reloads"]) if limit.allows(load_ms / 1e3))]
    say("measured", load_ms=loads, peak_rss_bytes=peak, host=after, **counted)


def _load(order: dict[str, Any], setup: Setup, say: Say) -> None:
    path = Path(order["path"])
    _, load = opener(path, setup)
    forget(path)
    model, load_ms = timed(load)
    say("loaded", load_ms=load_ms)
    model.close()


def _answers(order: dict[str, Any], setup: Setup, say: Say) -> None:
    from edgeft.bench.accuracy import answer
    from edgeft.bench.examples import Example

    limit = TimeLimit(order.get("seconds"))
    _, load = opener(Path(order["path"]), setup)
    model = load()
    say("loaded")
    try:
        for done, content in enumerate(order["prompts"]):
            if done and not limit.allows():  # what has begun is finished: cutting it would leave out long answers
                break
            tools = content["tools"] and tuple(content["tools"])
            example = Example(tuple(content["prompt"]), "", tools, reply=content["reply"])
            given = answer(model, example, order["max_new_tokens"], probabilities=order["probabilities"])
            say("answer", answer=asdict(given))
    finally:
        model.close()


def cases_of(model: "Runner", prompts: list[dict[str, Any]], plan: dict[str, Any]) -> tuple[list[Case], int]:
    """The plan's cases that fit the context window, and how many prompts do not.

    Raises UsageError when no prompt fits, or one of the synthetic lengths does not.
    """
    if plan["synthetic"]:
        return [_synthetic(model, index, *lengths) for index, lengths in enumerate(plan["synthetic"])], 0
    n_gen = plan["n_gen"]
    cases = [Case(index, n_gen, _tokenizer(model, prompt)) for index, prompt in enumerate(prompts)]
    lengths = [len(case.ids()) for case in cases]
    fitting = [case for case, length in zip(cases, lengths, strict=True) if length + n_gen <= model.n_ctx]
    if not fitting:
        raise UsageError(
            f"no prompt leaves room for {n_gen} tokens in a context of {model.n_ctx} (shortest prompt: "
            f"{min(lengths, default=0)} tokens); raise bench.n_ctx or lower bench.latency.n_gen"
        )
    return fitting, len(cases) - len(fitting)


def run_cases(
    model: "Runner",
    cases: list[Case],
    plan: dict[str, Any],
    say: Say,
    *,
    gpu: bool = False,
    limit: TimeLimit | None = None,
) -> dict[str, Any]:
    """Warm up, then answer every case `repetitions` times; fields of a Measurement, the runs said as they come.

    A `limit` makes the order of the cases random (by a fixed seed) and the rounds fewer: the warm-up takes a quarter of
    the time at most, and no round begins that would not end in time. One case is measured whatever the limit.
    """
    total, planned = 0, plan["repetitions"] * len(cases)
    limit = limit or TimeLimit()
    if limit.left_s is not None:
        cases = random.Random(0).sample(cases, len(cases))

    def progress() -> None:
        nonlocal total
        total += 1
        say("progress", done=total)

    warming = limit.part(WARM_UP_SHARE)
    for case in cases * plan["warmup"]:
        if total and not warming.allows():
            break
        run_once(model, case)
        progress()
    watch, meter, pss = Watch(), energy.meter(gpu=gpu), memory.pss_bytes()
    round_s = 0.0
    for repetition in range(plan["repetitions"]):
        if repetition and not limit.allows(round_s):
            break
        began = limit.clock()
        for place, case in enumerate(cases):
            if place and not repetition and not limit.allows():
                break
            run = run_once(model, case)
            meter.tick()
            pss = max(filter(None, (pss, memory.pss_bytes())), default=None)
            say("run", run={"prompt": case.index, "repetition": repetition, **run})
            progress()
        round_s = limit.clock() - began
    counted = {"watched": watch.stop(), "energy": meter.to_json(), "peak_pss_bytes": pss}
    return {**counted, "planned_runs": planned}


def run_once(model: "Runner", case: Case) -> dict[str, Any]:
    """One prompt answered once: the content of a `Run` but for its place.

    Raises RuntimeFault when the runtime gives another number of tokens than was asked for.
    """
    started, cpu_started = time.perf_counter(), time.process_time()
    ids = case.ids()
    tokenized = time.perf_counter()
    tokens = model.stream(ids, max_new_tokens=case.n_gen, ignore_eos=True)
    times = [time.perf_counter() for _ in itertools.islice(tokens, 1)]
    cpu_first = time.process_time()
    times += [time.perf_counter() for _ in tokens]
    cpu_last = time.process_time()
    if len(times) != case.n_gen:
        raise RuntimeFault(f"the runtime generated {len(times)} tokens instead of {case.n_gen}")
    return {
        "n_prompt": len(ids),
        "ttft_ms": milliseconds(times[0] - started),
        "prefill_ms": milliseconds(times[0] - tokenized),
        "itl_ms": [milliseconds(after - before) for before, after in itertools.pairwise(times)],
        "prefill_cpu_ms": milliseconds(cpu_first - cpu_started),
        "decode_cpu_ms": milliseconds(cpu_last - cpu_first),
    }


def timed(load: Load) -> tuple["Runner", float]:
    """The loaded model, and the milliseconds it took."""
    started = time.perf_counter()
    return load(), milliseconds(time.perf_counter() - started)


def opener(path: Path, setup: Setup) -> tuple[Backend, Load]:
    """The backend of the file, and how it is opened; the runtime is imported there, as an app would."""
    backend = backends.find(path, setup.backend)
    return backend, lambda: backend.open_model(path, setup)


def host_facts(backend: Backend, setup: Setup, model: Any, load_before: Any) -> dict[str, Any]:
    """The machine, the runtime and how it was set up; `load_before` is the load before the model was opened."""
    return {
        **host.describe_host(),
        "backend": host.versions(backend.DISTRIBUTIONS),
        "setup": asdict(setup),
        "n_threads": model.n_threads,
        "n_ctx": model.n_ctx,
        "load_average_before": load_before,
        **({"notes": notes} if (notes := getattr(model, "notes", [])) else {}),
    }


def forget(path: Path) -> dict[str, Any]:
    """Empty the page cache of the model's files, as far as the system lets us; what is known of it before the load."""
    files = memory.files_of(path)
    evicted = memory.evict(files)
    return {"evicted": evicted, "cached_share_before": memory.cached_share(files)}


def _loaded_again(load: Load) -> float:
    again, load_ms = timed(load)
    again.close()
    return load_ms


def _tokenizer(model: "Runner", prompt: dict[str, Any]) -> Callable[[], list[int]]:
    return lambda: model.tokenize(model.render(list(prompt["prompt"]), tools=prompt["tools"]))


def _synthetic(model: "Runner", index: int, n_prompt: int, n_gen: int) -> Case:
    """`n_prompt` random tokens, the same ones every time."""
    if n_prompt + n_gen > model.n_ctx:
        raise UsageError(
            f"{n_prompt} prompt tokens and {n_gen} generated ones do not fit a context of {model.n_ctx}; "
            "raise --n-ctx (as far as the model goes) or ask for shorter ones"
        )
    draw = random.Random(index)
    ids = [draw.randrange(model.n_vocab) for _ in range(n_prompt)]
    return Case(index, n_gen, lambda: ids)


def milliseconds(seconds: float) -> float:
    """To the hundredth of a microsecond: what is written is read by people too."""
    return round(seconds * 1e3, 5)


def _private_stdout() -> TextIO:
    """The real stdout for events only; whatever the backend prints goes to stderr from here on."""
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return events


TASKS: Mapping[str, Task] = {"speed": _speed, "load": _load, "answers": _answers}


if __name__ == "__main__":
    sys.exit(main())
