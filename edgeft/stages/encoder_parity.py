"""Stage `parity` of a classifier: is every exported folder still the model that was trained?"""

from pathlib import Path

from edgeft.artifact import Artifact
from edgeft.bench.encoder import text_of
from edgeft.bench.examples import read_examples, take
from edgeft.console import Log
from edgeft.parity.compare import raise_if_bad
from edgeft.parity.encoders import compare_encoders
from edgeft.recipe import Recipe
from edgeft.stages._exported import exported_files
from edgeft.stages._json import write_json
from edgeft.stages._model import final_model

METRICS = ("kl_mean", "kl_p99", "top1_agreement", "max_logit_difference")


def run(recipe: Recipe, inputs: dict[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Write parity.json: every folder of `export` against the final model in torch, on texts of the test set.

    Metrics are the numbers of the one that ships. Raises ParityFailed, after that, for a folder beyond the recipe's
    tolerance.
    """
    section = recipe.parity
    examples = take(read_examples(inputs["data"].file("test.jsonl")), section.prompts, recipe.seed)
    parity = compare_encoders(
        final_model(inputs).path,
        {name: file.path for name, file in exported_files(inputs["export"]).items()},
        [text_of(example) for example in examples],
        section.tolerance.model_dump(),
        n_threads=recipe.bench.n_threads,
        log=log,
    )
    write_json(out / "parity.json", parity)
    raise_if_bad(parity)
    shipped = next(row for row in parity["rows"] if row["form"] == recipe.shipped)
    return {name: shipped[name] for name in METRICS}
