"""Stage `bench` of a classifier: labels and speed of the folder that ships, and of the others beside it."""

from dataclasses import replace
from pathlib import Path

from edgeft.artifact import Artifact
from edgeft.bench.encoder import EncoderResult, bench_encoder
from edgeft.bench.examples import read_examples
from edgeft.bench.file import BenchSettings
from edgeft.bench.latency import LatencyPlan
from edgeft.console import Log
from edgeft.recipe import Recipe
from edgeft.stages._exported import Exported, exported_file, exported_files
from edgeft.stages._json import write_json, write_lines
from edgeft.stages.bench import lost_when_stopped, scoring_keys


def run(recipe: Recipe, inputs: dict[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Write bench.json and predictions.jsonl of the folder that ships, others.json of the others."""
    section = recipe.bench
    settings = BenchSettings(
        **scoring_keys(section),
        limit=section.limit,
        n_ctx=section.n_ctx,
        n_threads=section.n_threads,
        minutes=section.minutes,
        latency=LatencyPlan(**section.latency.model_dump()),
    )
    examples = read_examples(inputs["data"].file("test.jsonl"))

    def measured(model: Exported) -> EncoderResult:
        with lost_when_stopped(log):
            result = bench_encoder(model.path, examples, settings, seed=recipe.seed, log=log)
        return replace(result, file=model.file)

    shipped = exported_file(inputs["export"], recipe.shipped)
    result = measured(shipped)
    write_json(out / "bench.json", result.to_json())
    write_lines(out / "predictions.jsonl", result.evaluation.predictions())
    files = exported_files(inputs["export"]).values() if section.files == "all" else ()
    write_json(out / "others.json", [measured(model).to_json() for model in files if model != shipped])
    return result.flat()
