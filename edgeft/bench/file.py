"""Accuracy and speed of one model: what `edgeft bench FILE` and the bench stage do."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeft.bench import backends, roofline
from edgeft.bench.accuracy import Evaluation, Scoring, in_time
from edgeft.bench.answers import evaluate_file
from edgeft.bench.backends import Setup
from edgeft.bench.examples import Example, digest, take
from edgeft.bench.latency import SILENCE_S, WORKER, LatencyPlan, Measurement, measure
from edgeft.bench.paired import pair_accuracies, read_accuracy, same_examples
from edgeft.bench.passes import SPEED_SHARE, TimeLimit
from edgeft.bench.slices import check_fields
from edgeft.errors import Interrupted, RunCutShort, RuntimeFault, UsageError

if TYPE_CHECKING:
    from edgeft.console import Log

UNANSWERED = Evaluation(0, (), (), (), (), 0.0)


@dataclass(frozen=True)
class BenchSettings(Scoring):
    """How a file is benchmarked; the same names and defaults as the recipe's `bench` section (a test holds
    them together), here once more because a device has no recipe."""

    limit: int | None = None
    max_new_tokens: int = 128
    n_ctx: int = 1024
    n_threads: int | None = None
    minutes: float | None = None
    latency: LatencyPlan = field(default_factory=LatencyPlan)

    def __post_init__(self) -> None:
        """Raises UsageError as `Scoring`, and for a limit without time."""
        super().__post_init__()
        if self.minutes is not None and not self.minutes > 0:
            raise UsageError(f"{self.minutes:g} minutes: a measurement takes time; give more than 0")

    def time_limit(self) -> TimeLimit:
        """The limit of `minutes`, from now on."""
        return TimeLimit(None if self.minutes is None else 60 * self.minutes)


@dataclass(frozen=True)
class BenchResult:
    """Accuracy and speed of the file called `file`; the accuracy is over 0 examples where none was asked for.

    Not `complete`: the runtime failed or Ctrl-C came midway as `failure` says, and this is what was measured before.
    `against` names earlier answers (`what`) and holds `rows`, as `paired.Paired.to_json`, where the answers were paired
    with them.
    """

    file: str
    evaluation: Evaluation
    measurement: Measurement
    roofline: dict[str, Any] = field(default_factory=dict)
    complete: bool = True
    failure: str = ""
    against: dict[str, Any] = field(default_factory=dict)

    def flat(self) -> dict[str, float]:
        """The numbers budgets can be set on, by name."""
        return self.evaluation.values() | self.measurement.flat()

    def to_json(self) -> dict[str, Any]:
        """Content of bench.json; the answers are `evaluation.predictions()`."""
        return {
            "file": self.file,
            "complete": self.complete,
            "failure": self.failure,
            "metrics": self.flat(),
            "accuracy": self.evaluation.to_json(),
            "latency": self.measurement.to_json(),
            "roofline": self.roofline,
            "against": self.against,
        }


def bench_file(
    path: Path,
    examples: Sequence[Example],
    settings: BenchSettings,
    setup: Setup | None = None,
    *,
    seed: int = 42,
    scored: bool = True,
    against: Path | None = None,
    with_roofline: bool = True,
    silence_s: float = SILENCE_S,
    command: Sequence[str] = WORKER,
    log: "Log",
) -> BenchResult:
    """Measure speed, then accuracy on the examples (`settings.limit` drawn by `seed`), each in a child process.

    Without examples, or not `scored`, only speed is measured; the plan's synthetic lengths need none. `setup` says
    how the model is opened; its context and threads are those of `settings`. `against` is a file of earlier answers,
    as `paired.read_accuracy` reads. `command` is the child to run; tests give one that misbehaves.

    Under `settings.minutes` speed takes at most a third of the time, or all of it where nothing is scored, and examples
    are scored in a random order until the time is over; the clock alone decides when.

    Raises RunCutShort, which holds the BenchResult so far, when the runtime fails midway, and Interrupted, which holds
    the same, at Ctrl-C after the first run; ModelError when there is no such model; UsageError when `against` is about
    other examples; RuntimeFault and UsageError as `measure` does.
    """
    setup = replace(setup or Setup(), n_ctx=settings.n_ctx, n_threads=settings.n_threads)
    backends.find(path, setup.backend)
    chosen = take(examples, settings.limit, seed) if scored else []
    check_fields(chosen, settings.slice_by)
    earlier = _earlier(against, chosen) if against else None
    child: dict[str, Any] = {"command": command, "silence_s": silence_s, "log": log}
    limit = settings.time_limit()
    try:
        speed_limit = limit.part(SPEED_SHARE if chosen else 1.0)
        measurement = measure(path, examples, settings.latency, setup, limit=speed_limit, **child)
    except (RunCutShort, Interrupted) as error:
        cut: Measurement = error.partial
        partial = BenchResult(path.name, UNANSWERED, cut, complete=False, failure=str(error))
        raise type(error)(str(error), partial) from error
    result = BenchResult(path.name, UNANSWERED, measurement)
    try:
        if with_roofline:
            result = replace(result, roofline=_roofline(measurement, setup, log))
        if not chosen:
            return result
        how: dict[str, Any] = {"max_new_tokens": settings.max_new_tokens, "limit": limit, "seed": seed}
        evaluation = evaluate_file(path, chosen, settings, setup, **how, **child)
    except (RuntimeFault, KeyboardInterrupt) as error:
        raise cut_short(result, error) from error
    evaluation = timed(evaluation, settings, measurement, limit)
    return replace(result, evaluation=evaluation, against=_against(against, evaluation, earlier))


def cut_short(result: BenchResult, error: BaseException) -> RunCutShort | Interrupted:
    """What to raise when `error` ends a measurement midway: it holds `result`, with the answers that `error` holds."""
    kind = RunCutShort if isinstance(error, RuntimeFault) else Interrupted
    failure = str(error) or str(Interrupted())
    answered = getattr(error, "partial", None) or result.evaluation
    return kind(failure, replace(result, evaluation=answered, complete=False, failure=failure))


def timed(evaluation: Evaluation, settings: BenchSettings, measurement: Measurement, limit: TimeLimit) -> Evaluation:
    """The evaluation; one that ended with `limit` says how long all examples would take."""
    if settings.minutes is None or not evaluation.n:
        return evaluation
    needed_s = evaluation.seconds * evaluation.n_asked / evaluation.n
    runs_were_cut = len(measurement.runs) < (measurement.planned_runs or 0)
    spent_s = 60 * settings.minutes - (limit.left_s or 0.0) - evaluation.seconds
    all_s = needed_s / (1 - SPEED_SHARE) if runs_were_cut else needed_s + spent_s
    return in_time(evaluation, settings.minutes, max(math.ceil(all_s / 60), math.floor(settings.minutes) + 1))


def _earlier(against: Path, chosen: Sequence[Example]) -> dict[str, Any]:
    """The accuracy at `against`, checked before anything is measured; its `examples_sha256` is that of `chosen`."""
    earlier, found = read_accuracy(against), digest(chosen)
    ours = {"examples_sha256": found, "references": [example.answer for example in chosen]}
    if not same_examples(ours, earlier):
        raise UsageError(f"{against}: answers to other examples; pair measurements of the same test set and limit")
    return {**earlier, "examples_sha256": found}


def _against(against: Path | None, evaluation: Evaluation, earlier: dict[str, Any] | None) -> dict[str, Any]:
    if earlier is None:
        return {}
    return {"what": str(against), "rows": [row.to_json() for row in pair_accuracies(evaluation.to_json(), earlier)]}


def _roofline(measurement: Measurement, setup: Setup, log: "Log") -> dict[str, Any]:
    """Bounds and shares, see `roofline.shares`; `absent` says why there are none."""
    if setup.uses_gpu:
        return {"absent": "only the processor's bounds are measured, and a GPU took part"}
    if measurement.work is None:
        return {"absent": "the backend does not say what the model reads and multiplies"}
    try:
        peaks = roofline.machine(measurement.host["n_threads"], log)
    except RuntimeFault as error:  # what was measured of the model is worth more than what it is held against
        log.say(f"{error}\nThe speed is not held against this machine's limits.")
        return {"absent": f"this machine's limits could not be measured: {str(error).splitlines()[0]}"}
    work = roofline.Work(**measurement.work)
    return roofline.shares(peaks, work, measurement.summary(), measurement.mean_position())
