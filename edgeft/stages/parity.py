"""Stage `parity`: is every exported form still the model that was trained?"""

import json
import tempfile
from pathlib import Path
from typing import Any

from edgeft.artifact import Artifact
from edgeft.bench.examples import read_examples, take
from edgeft.console import Log
from edgeft.export.gguf import FLOAT_FTYPES, write_gguf
from edgeft.parity.bisect import bisect
from edgeft.parity.compare import compare_forms, raise_if_bad
from edgeft.parity.forms import FormSource, Prompt, gguf_form
from edgeft.parity.torch_form import adapter_form, folder_form
from edgeft.recipe import Recipe
from edgeft.stages._model import final_model
from edgeft.training.models import resolve_base

UNQUANTIZED = "F16 (not kept)"
METRICS = ("kl_mean", "kl_p99", "top1_agreement", "greedy_prefix")


def run(recipe: Recipe, inputs: dict[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Write parity.json; metrics are the numbers of the file that ships.

    Forms, in order: `adapter` (where one was trained, and nothing was made of the merged model since) on the
    base in torch, the final model in torch (`merged`, or the stage that made it), then every file of `export`
    in llama.cpp, named by its ftype. Prompts are from the test set. Raises ParityFailed, after writing
    parity.json, when a form is beyond the recipe's tolerance; where that is a file, with the first key, token,
    tensor or layer that is not the model's.
    """
    section, final = recipe.parity, final_model(inputs)
    examples = take(read_examples(inputs["data"].file("test.jsonl")), section.prompts, recipe.seed)
    prompts = [Prompt(example.prompt, example.tools) for example in examples]
    files: list[dict[str, Any]] = json.loads(inputs["export"].file("files.json").read_bytes())
    sources: list[FormSource] = []
    paths: dict[str, Path] = {}
    adapter = inputs["train"].path / "adapter"
    if adapter.is_dir() and final.stage == "merge":
        sources.append(adapter_form("adapter", resolve_base(recipe), adapter, inputs["data"].path / "tokenizer"))
    sources.append(folder_form("merged" if final.stage == "merge" else final.stage, final.path))
    with tempfile.TemporaryDirectory(dir=out, prefix=".unquantized-") as temporary:
        if not any(entry["ftype"] in FLOAT_FTYPES for entry in files):
            # Limits for quantized files are too wide to show every fault of the exporter.
            paths[UNQUANTIZED] = Path(temporary) / "F16.gguf"
            write_gguf(final.path, paths[UNQUANTIZED], ftype="F16", name=recipe.name, provenance={}, log=log)
        paths |= {entry["ftype"]: inputs["export"].file(entry["file"]) for entry in files}
        sources += [gguf_form(name, path, recipe.bench.n_threads) for name, path in paths.items()]
        limits = section.tolerance.model_dump()
        parity = compare_forms(sources, prompts, n_gen=section.n_gen, limits=limits, log=log)
        bad = next((row["form"] for row in parity["rows"] if not row["ok"]), None)
        if bad in paths:
            found = bisect(final.path, paths[bad], prompts, log, n_threads=recipe.bench.n_threads)
            parity["finding"] = found.to_json() if found else None
    (out / "parity.json").write_text(json.dumps(parity, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    raise_if_bad(parity)
    shipped = next(row for row in parity["rows"] if row["form"] == recipe.export.shipped)
    return {name: shipped[name] for name in METRICS}
