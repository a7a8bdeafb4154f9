"""Stage `bench`: accuracy and speed of the file that ships, and of the others beside it, in their real runtime."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from edgeft.artifact import Artifact
from edgeft.bench.accuracy import Scoring
from edgeft.bench.backends import Setup
from edgeft.bench.confidence import predictions_with_confidence
from edgeft.bench.examples import read_examples, take
from edgeft.bench.file import BenchResult, BenchSettings, bench_file
from edgeft.bench.latency import LatencyPlan
from edgeft.console import Log
from edgeft.recipe import Recipe
from edgeft.sections import Bench
from edgeft.stages._exported import Exported, exported_file, exported_files
from edgeft.stages._json import write_json, write_lines


def run(recipe: Recipe, inputs: dict[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Write bench.json (scores, intervals, raw latency samples) and predictions.jsonl of the file that ships, and
    others.json, a list of the same for the other files where the recipe asks for all.

    Reads test.jsonl of `data` and the files of `export`. Raises RuntimeFault when the runtime crashes on a file,
    UsageError when no test prompt fits the context window.
    """
    shipped, section = exported_file(inputs["export"], recipe.export.shipped), recipe.bench
    settings = BenchSettings(
        **scoring_keys(section),
        limit=section.limit,
        max_new_tokens=section.max_new_tokens,
        n_ctx=section.n_ctx,
        n_threads=section.n_threads,
        minutes=section.minutes,
        latency=LatencyPlan(**section.latency.model_dump()),
    )
    examples = read_examples(inputs["data"].file("test.jsonl"))

    def measured(model: Exported, **options: Any) -> BenchResult:
        with lost_when_stopped(log):
            result = bench_file(model.path, examples, settings, seed=recipe.seed, log=log, **options)
        return replace(result, file=model.file)

    result = measured(shipped)
    write_json(out / "bench.json", result.to_json())
    asked = take(examples, settings.limit, recipe.seed)
    setup = Setup(n_ctx=settings.n_ctx, n_threads=settings.n_threads)
    n_new = settings.max_new_tokens
    predictions = predictions_with_confidence(
        shipped.path, result.evaluation, asked, setup, max_new_tokens=n_new, log=log
    )
    write_lines(out / "predictions.jsonl", predictions)
    files = exported_files(inputs["export"]).values() if section.files == "all" else ()
    others = [measured(model, with_roofline=False).to_json() for model in files if model != shipped]
    write_json(out / "others.json", others)
    return result.flat()


@contextmanager
def lost_when_stopped(log: Log) -> Iterator[None]:
    """Ctrl-C: say that a stage keeps nothing of what it measured."""
    try:
        yield
    except KeyboardInterrupt:
        log.say("bench: stopped before its end; the same command measures again from the start of this stage")
        raise


def scoring_keys(section: Bench) -> dict[str, Any]:
    """The keys of a `Scoring`, from the section of the recipe."""
    return {key.name: getattr(section, key.name) for key in fields(Scoring)}
