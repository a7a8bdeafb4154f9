"""Accuracy and speed of a classifier's ONNX folder, measured in child processes.

A text is a run: `ttft_ms` is the time from the text to its label, tokenizing included, one text at a time. Texts per
second at a batch of BATCH are measured apart.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeft.bench.accuracy import FINISHED, Answer, score_answers
from edgeft.bench.backends import Setup
from edgeft.bench.examples import Example, take
from edgeft.bench.file import BenchResult, BenchSettings
from edgeft.bench.latency import SILENCE_S, Measurement, Run, converse, spread
from edgeft.bench.slices import check_fields

if TYPE_CHECKING:
    from edgeft.console import Log

ENCODER_WORKER = (sys.executable, "-m", "edgeft.bench.encoder_worker")
BATCH = 32


@dataclass(frozen=True)
class EncoderResult(BenchResult):
    """`rates` are texts per second: `texts_per_s_batch_1` and `texts_per_s_batch_32`, medians over repetitions."""

    rates: dict[str, float] = field(default_factory=dict)

    def flat(self) -> dict[str, float]:
        """See `BenchResult.flat`."""
        return super().flat() | self.rates


def bench_encoder(
    path: Path,
    examples: Sequence[Example],
    settings: BenchSettings,
    setup: Setup | None = None,
    *,
    seed: int = 42,
    silence_s: float = SILENCE_S,
    command: Sequence[str] = ENCODER_WORKER,
    log: "Log",
) -> EncoderResult:
    """Measure speed on texts spread over `examples`, then the labels of `settings.limit` of them drawn by `seed`.

    `setup` is as for `bench_file`. An answer's probability is the label's, at the folder's own temperature. Raises
    RuntimeFault when a child crashes (naming the signal), fails or says nothing for `silence_s` seconds, and what the
    runtime raises in it.
    """
    chosen, plan = take(examples, settings.limit, seed), settings.latency
    check_fields(chosen, settings.slice_by)
    order: dict[str, Any] = {
        "path": str(path),
        "setup": asdict(replace(setup or Setup(), n_ctx=settings.n_ctx, n_threads=settings.n_threads)),
        "plan": asdict(plan),
        "timed": [text_of(example) for example in spread(examples, plan.prompts)],
        "batch": [text_of(example) for example in spread(examples, BATCH)],
        "texts": [text_of(example) for example in chosen],
        "references": [example.answer for example in chosen],
    }
    fresh = [
        event["load_ms"]
        for _ in range(plan.cold_loads - 1)
        for event in converse(command, {**order, "task": "load"}, path, silence_s)
        if event["event"] == "loaded"
    ]
    known: dict[str, Any] = {}
    runs: list[Run] = []
    answers: list[Answer] = []
    started = time.perf_counter()
    with log.progress("labels", len(chosen), "texts") as progress:
        for event in converse(command, {**order, "task": "labels"}, path, silence_s):
            if event["event"] == "run":
                runs.append(Run(**event["run"]))
            elif event["event"] == "answer":
                answers.append(Answer(finish=FINISHED, n_new=0, **event["answer"]))
                progress.update(len(answers))
            else:
                facts = known.get("host", {}) | event.get("host", {})
                known |= {**event, "host": facts}
    del known["event"]
    for note in known["host"].get("notes", ()):
        log.say(f"{path}: {note}")
    rates = known.pop("rates")
    measurement = Measurement(runs=runs, fresh_load_ms=fresh, n_gen=0, left_out=0, **known)
    evaluation = score_answers(chosen, answers, settings, time.perf_counter() - started)
    absent = {"absent": "one pass over a short text is no decoding"}
    return EncoderResult(path.name, evaluation, measurement, roofline=absent, rates=rates)


def text_of(example: Example) -> str:
    """What a classifier reads: the user's turns, joined by line ends, as in training."""
    return "\n".join(str(turn["content"]) for turn in example.prompt if turn["role"] == "user")
