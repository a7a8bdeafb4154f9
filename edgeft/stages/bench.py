"""Stage `bench`: accuracy and speed of the file that ships, in its real runtime."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from edgeft.artifact import Artifact
from edgeft.bench.accuracy import Scoring
from edgeft.bench.examples import read_examples
from edgeft.bench.file import BenchSettings, bench_file
from edgeft.bench.latency import LatencyPlan
from edgeft.console import Log
from edgeft.errors import ArtifactError
from edgeft.recipe import Recipe
from edgeft.sections import Bench
from edgeft.stages._json import write_json, write_lines


def run(recipe: Recipe, inputs: dict[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Write bench.json (scores, intervals, raw latency samples) and predictions.jsonl.

    Reads test.jsonl of `data` and the shipping file of `export`. Raises RuntimeFault when the runtime crashes
    on the file, UsageError when no test prompt fits the context window.
    """
    path = shipping_file(inputs["export"], recipe.export.shipped)
    section = recipe.bench
    settings = BenchSettings(
        **scoring_keys(section),
        limit=section.limit,
        max_new_tokens=section.max_new_tokens,
        n_ctx=section.n_ctx,
        n_threads=section.n_threads,
        latency=LatencyPlan(**section.latency.model_dump()),
    )
    examples = read_examples(inputs["data"].file("test.jsonl"))
    result = bench_file(path, examples, settings, seed=recipe.seed, log=log)
    write_json(out / "bench.json", result.to_json())
    write_lines(out / "predictions.jsonl", result.evaluation.predictions())
    return result.flat()


def scoring_keys(section: Bench) -> dict[str, Any]:
    """The keys of a `Scoring`, from the section of the recipe."""
    return {key.name: getattr(section, key.name) for key in fields(Scoring)}


def shipping_file(export: Artifact, ftype: str) -> Path:
    """Path of the exported file of this ftype. Raises ArtifactError when the artifact lists none."""
    entries = json.loads(export.file("files.json").read_bytes())
    for entry in entries:
        if entry["ftype"] == ftype:
            return export.file(entry["file"])
    known = ", ".join(entry["ftype"] for entry in entries)
    raise ArtifactError(f"{export.path}: files.json lists no {ftype} file, only {known}; export again")
