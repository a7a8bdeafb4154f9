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

from edgeft.bench.accuracy import FINISHED, Answer, score_some
from edgeft.bench.answers import asking_order
from edgeft.bench.backends import Setup
from edgeft.bench.examples import Example, take
from edgeft.bench.file import UNANSWERED, BenchResult, BenchSettings, cut_short, timed
from edgeft.bench.latency import SILENCE_S, Measurement, Run, converse, spread
from edgeft.bench.slices import check_fields
from edgeft.errors import RuntimeFault

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

    `setup` and `settings.minutes` are as for `bench_file`. An answer's probability is the label's, at the folder's own
    temperature. Raises RuntimeFault when a child crashes (naming the signal), fails or says nothing for `silence_s`
    seconds, and what the runtime raises in it; RunCutShort or, at Ctrl-C, Interrupted, which hold the result so far,
    once the speed is measured.
    """
    limit = settings.time_limit()
    chosen, plan = take(examples, settings.limit, seed), settings.latency
    check_fields(chosen, settings.slice_by)
    places = asking_order(len(chosen), limit, seed)
    order: dict[str, Any] = {
        "path": str(path),
        "setup": asdict(replace(setup or Setup(), n_ctx=settings.n_ctx, n_threads=settings.n_threads)),
        "plan": asdict(plan),
        "timed": [text_of(example) for example in spread(examples, plan.prompts)],
        "batch": [text_of(example) for example in spread(examples, BATCH)],
        "texts": [text_of(chosen[place]) for place in places],
        "references": [chosen[place].answer for place in places],
    }
    fresh = [
        event["load_ms"]
        for _ in range(plan.cold_loads - 1)
        for event in converse(command, {**order, "task": "load"}, path, silence_s)
        if event["event"] == "loaded"
    ]
    known: dict[str, Any] = {}
    runs: list[Run] = []
    answers: dict[int, Answer] = {}
    labels_began = time.perf_counter()

    def result() -> EncoderResult:
        facts = {name: value for name, value in known.items() if name not in ("event", "rates")}
        cut = {"peak_rss_bytes": 0, "runs": runs, "fresh_load_ms": fresh, "n_gen": 0, "left_out": 0}
        measurement = Measurement(**{**cut, **facts})
        seconds = time.perf_counter() - labels_began
        evaluation = score_some(chosen, answers, settings, seconds) if answers else UNANSWERED
        absent = {"absent": "one pass over a short text is no decoding"}
        return EncoderResult(path.name, evaluation, measurement, roofline=absent, rates=known["rates"])

    try:
        with log.progress("labels", len(chosen), "texts") as progress:
            for event in converse(command, {**order, "task": "labels", "seconds": limit.left_s}, path, silence_s):
                if event["event"] == "run":
                    runs.append(Run(**event["run"]))
                elif event["event"] == "answer":
                    answers[places[len(answers)]] = Answer(finish=FINISHED, n_new=0, **event["answer"])
                    progress.update(len(answers))
                else:
                    facts = known.get("host", {}) | event.get("host", {})
                    known |= {**event, "host": facts}
                    labels_began = time.perf_counter() if "rates" in event else labels_began
    except (RuntimeFault, KeyboardInterrupt) as error:
        if "rates" not in known:
            raise
        raise cut_short(result(), error) from error
    for note in known["host"].get("notes", ()):
        log.say(f"{path}: {note}")
    found = result()
    return replace(found, evaluation=timed(found.evaluation, settings, found.measurement, limit))


def text_of(example: Example) -> str:
    """What a classifier reads: the user's turns, joined by line ends, as in training."""
    return "\n".join(str(turn["content"]) for turn in example.prompt if turn["role"] == "user")
