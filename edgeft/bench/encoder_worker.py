"""The child process of `edgeft.bench.encoder`; it talks as `edgeft.bench.worker` does.

{"event": "loaded", "load_ms": 41.2, "host": {...}, ...}
{"event": "run", "run": {...}}                                    one text labelled: a `latency.Run`
{"event": "answer", "answer": {...}}                              fields of an `accuracy.Answer`
{"event": "measured", "rates": {...}, ...}                        what is known when all is done
"""

import math
import sys
import time
from pathlib import Path
from typing import Any

from edgeft.bench import energy, memory
from edgeft.bench.backends import Setup
from edgeft.bench.noise import Watch
from edgeft.bench.passes import SPEED_SHARE, TimeLimit
from edgeft.bench.statistics import quantile
from edgeft.bench.worker import TASKS, Say, forget, host_facts, main, milliseconds, opener, timed
from edgeft.machine import process

ANSWERS_AT_ONCE = 256
"""Texts labelled between two signs of life."""
ANSWERS_IN_TIME = 32
"""The same under a time limit."""


def labels(order: dict[str, Any], setup: Setup, say: Say) -> None:
    """The speed of single texts and of a batch, then the label of every text."""
    path, limit = Path(order["path"]), TimeLimit(order.get("seconds"))
    backend, load = opener(path, setup)
    page_cache, before = forget(path), process.load_average()
    opened, load_ms = timed(load)
    model: Any = opened
    try:
        facts = host_facts(backend, setup, model, before)
        sizes = {"size_bytes": memory.size_bytes(path), "bundle_bytes": memory.bundle_bytes(path)}
        say("loaded", load_ms=[load_ms], page_cache=page_cache, host=facts, **sizes)
        say("measured", **_speed(model, order, say, limit.part(SPEED_SHARE)))
        step = ANSWERS_AT_ONCE if limit.left_s is None else ANSWERS_IN_TIME
        for at in range(0, len(order["texts"]), step):
            if at and not limit.allows():
                break
            _label(model, order, slice(at, at + step), say)
        peak = process.peak_rss_bytes()
    finally:
        model.close()
    say("measured", peak_rss_bytes=peak, host={"load_average_after": process.load_average()})


def _speed(model: Any, order: dict[str, Any], say: Say, limit: TimeLimit) -> dict[str, Any]:
    """Single texts, said as they come; then batches. Fields of a Measurement, and the rates.

    No round begins that would not end within `limit`; the first takes its time.
    """
    plan, texts = order["plan"], order["timed"]
    for _ in range(plan["warmup"]):
        for text in texts:
            model.classify([text])
    n_tokens = model.count_tokens(texts)
    watch, meter = Watch(), energy.meter(gpu=False)
    singles, batches, round_s = [], [], 0.0
    for repetition in range(plan["repetitions"]):
        if repetition and not limit.allows(round_s):
            break
        round_began = began = time.perf_counter()
        for place, text in enumerate(texts):
            started, cpu_started = time.perf_counter(), time.process_time()
            model.classify([text])
            taken = milliseconds(time.perf_counter() - started)
            used = milliseconds(time.process_time() - cpu_started)
            run = {"prompt": place, "repetition": repetition, "n_prompt": n_tokens[place], "itl_ms": []}
            say("run", run={**run, "ttft_ms": taken, "prefill_ms": taken, "prefill_cpu_ms": used})
            meter.tick()
        singles.append(len(texts) / (time.perf_counter() - began))
        began = time.perf_counter()
        model.classify(order["batch"])
        batches.append(len(order["batch"]) / (time.perf_counter() - began))
        round_s = time.perf_counter() - round_began
    rates = {"texts_per_s_batch_1": quantile(singles, 0.5), "texts_per_s_batch_32": quantile(batches, 0.5)}
    counted = {"watched": watch.stop(), "energy": meter.to_json(), "peak_pss_bytes": memory.pss_bytes()}
    return {**counted, "rates": rates, "planned_runs": plan["repetitions"] * len(texts)}


def _label(model: Any, order: dict[str, Any], part: slice, say: Say) -> None:
    texts = order["texts"][part]
    found = model.classify(texts, threshold=0.0)
    for answer, n, reference in zip(found, model.count_tokens(texts), order["references"][part], strict=True):
        probability = answer.probabilities[answer.label]
        content = {"text": answer.label, "n_prompt": n, "log_prob": _log(probability)}
        if reference in answer.probabilities:
            content |= {"reference_nll": -_log(answer.probabilities[reference]), "reference_tokens": 1}
        say("answer", answer=content)


def _log(probability: float) -> float:
    return math.log(max(probability, sys.float_info.min))


if __name__ == "__main__":
    sys.exit(main({"load": TASKS["load"], "labels": labels}))
