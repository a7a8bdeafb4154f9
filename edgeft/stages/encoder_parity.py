"""Stage `parity` of a classifier: is every exported folder still the model that was trained?"""

from pathlib import Path

from edgeft.artifact import Artifact
from edgeft.bench.encoder import text_of
from edgeft.bench.examples import read_examples, take
from edgeft.console import Log
from edgeft.parity.bisect_encoder import bisect_encoder
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
    tolerance, with the first token, tensor or node that is not the model's.
    """
    section, model = recipe.parity, final_model(inputs).path
    examples = take(read_examples(inputs["data"].file("test.jsonl")), section.prompts, recipe.seed)
    texts, n_threads = [text_of(example) for example in examples], recipe.bench.n_threads
    paths = {name: file.path for name, file in exported_files(inputs["export"]).items()}
    limits = section.tolerance.model_dump()
    parity = compare_encoders(model, paths, texts, limits, n_threads=n_threads, log=log)
    if bad := next((row["form"] for row in parity["rows"] if not row["ok"]), None):
        found = bisect_encoder(model, paths[bad], texts, log, n_threads=n_threads)
        parity["finding"] = found.to_json() if found else None
    write_json(out / "parity.json", parity)
    raise_if_bad(parity)
    shipped = next(row for row in parity["rows"] if row["form"] == recipe.shipped)
    return {name: shipped[name] for name in METRICS}
