"""Stage `bench`: accuracy and speed of the file that ships, and of the others beside it, in their real runtime."""

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
    """Write bench.json (scores, intervals, raw latency samples) and predictions.jsonl of the file that ships, and
    others.json, a list of the same for the other files where the recipe asks for all.

    Reads test.jsonl of `data` and the files of `export`. Raises RuntimeFault when the runtime crashes on a file,
    UsageError when no test prompt fits the context window.
    """
    export = inputs["export"]
    path = shipping_file(export, recipe.export.shipped)
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
    others = [each for each in exported_files(export).values() if each != path] if section.files == "all" else []
    measured = [
        bench_file(each, examples, settings, seed=recipe.seed, with_roofline=False, log=log).to_json()
        for each in others
    ]
    write_json(out / "others.json", measured)
    return result.flat()


def scoring_keys(section: Bench) -> dict[str, Any]:
    """The keys of a `Scoring`, from the section of the recipe."""
    return {key.name: getattr(section, key.name) for key in fields(Scoring)}


def shipping_file(export: Artifact, ftype: str) -> Path:
    """Path of the exported file of this ftype. Raises ArtifactError when the artifact lists none."""
    files = exported_files(export)
    if ftype not in files:
        raise ArtifactError(f"{export.path}: files.json lists no {ftype} file, only {', '.join(files)}; export again")
    return files[ftype]


def exported_files(export: Artifact) -> dict[str, Path]:
    """{ftype: path} of everything exported, in the recipe's order."""
    entries = json.loads(export.file("files.json").read_bytes())
    return {entry["ftype"]: export.file(entry["file"]) for entry in entries}
