"""Accuracy and speed of one model file: what `edgeft bench FILE --data test.jsonl` and the bench stage do."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeft import runtime
from edgeft.bench.accuracy import Evaluation, evaluate
from edgeft.bench.examples import Example, take
from edgeft.bench.latency import LatencyPlan, Measurement, measure
from edgeft.errors import ModelError

if TYPE_CHECKING:
    from edgeft.console import Log


@dataclass(frozen=True)
class BenchSettings:
    """How a file is benchmarked; the same names and defaults as the recipe's `bench` section (a test holds
    them together), here once more because a device has no recipe."""

    metrics: tuple[str, ...] = ("exact_match",)
    limit: int | None = None
    max_new_tokens: int = 128
    n_ctx: int = 1024
    n_threads: int | None = None
    latency: LatencyPlan = field(default_factory=LatencyPlan)


@dataclass(frozen=True)
class BenchResult:
    """Accuracy and speed of the file called `file`."""

    file: str
    evaluation: Evaluation
    measurement: Measurement

    def flat(self) -> dict[str, float]:
        """The numbers budgets can be set on, by name."""
        return self.evaluation.values() | self.measurement.flat()

    def to_json(self) -> dict[str, Any]:
        """Content of bench.json; the answers are `evaluation.predictions()`."""
        return {
            "file": self.file,
            "metrics": self.flat(),
            "accuracy": self.evaluation.to_json(),
            "latency": self.measurement.to_json(),
        }


def bench_file(
    path: Path, examples: Sequence[Example], settings: BenchSettings, *, seed: int = 42, log: "Log"
) -> BenchResult:
    """Measure speed in a child process, then accuracy on the examples (`settings.limit` drawn by `seed`).

    Speed comes first: a file that crashes its runtime then takes the child down and not this process. Raises
    ModelError when there is no such file, RuntimeFault and UsageError as `measure` and `evaluate` do.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file; give the path of an exported model file")
    measurement = measure(path, examples, settings.latency, n_ctx=settings.n_ctx, n_threads=settings.n_threads, log=log)
    chosen = take(examples, settings.limit, seed)
    with runtime.load(path, n_ctx=settings.n_ctx, n_threads=settings.n_threads) as model:
        evaluation = evaluate(model, chosen, settings.metrics, max_new_tokens=settings.max_new_tokens, log=log)
    return BenchResult(path.name, evaluation, measurement)
