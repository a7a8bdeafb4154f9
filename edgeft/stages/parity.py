"""Stage `parity`: is every exported form still the model that was trained?"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from edgeft.artifact import Artifact
from edgeft.bench.examples import read_examples, take
from edgeft.console import Log
from edgeft.export.gguf import FLOAT_FTYPES, write_gguf
from edgeft.parity.compare import compare_forms, raise_if_bad
from edgeft.parity.files import bisect_file, file_form
from edgeft.parity.forms import FormSource, Prompt
from edgeft.parity.torch_form import adapter_form, folder_form
from edgeft.recipe import Recipe
from edgeft.stages._exported import Exported, exported_files
from edgeft.stages._model import final_model
from edgeft.training.models import resolve_base

FORMATS = ("gguf", "onnx")
UNQUANTIZED, UNQUANTIZED_ONNX = "F16 (not kept)", "fp32 (not kept)"
FLOAT_GRAPHS = {"fp32", "fp16"}
METRICS = ("kl_mean", "kl_p99", "top1_agreement", "greedy_prefix")


def run(recipe: Recipe, inputs: dict[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Write parity.json; metrics are the numbers of the file that ships.

    Forms, in order: `adapter` (where one was trained, and nothing was made of the merged model since) on the
    base in torch, the final model in torch (`merged`, or the stage that made it), then every file of `export`
    in its runtime, GGUF before ONNX. Prompts are from the test set. Raises ParityFailed, after writing
    parity.json, when a form is beyond the recipe's tolerance; where that is a file, with the first key, token,
    tensor or layer that is not the model's.
    """
    section, final = recipe.parity, final_model(inputs)
    examples = take(read_examples(inputs["data"].file("test.jsonl")), section.prompts, recipe.seed)
    prompts = [Prompt(example.prompt, example.tools) for example in examples]
    n_threads = recipe.bench.n_threads
    sources: list[FormSource] = []
    adapter = inputs["train"].path / "adapter"
    if adapter.is_dir() and final.stage == "merge":
        sources.append(adapter_form("adapter", resolve_base(recipe), adapter, inputs["data"].path / "tokenizer"))
    sources.append(folder_form("merged" if final.stage == "merge" else final.stage, final.path))
    with tempfile.TemporaryDirectory(dir=out, prefix=".unquantized-") as temporary:
        paths = _with_unquantized(exported_files(inputs["export"]), final.path, Path(temporary), log)
        sources += [file_form(name, path, n_threads) for name, path in paths.items()]
        limits = section.tolerance.model_dump()
        parity = compare_forms(sources, prompts, n_gen=section.n_gen, limits=limits, log=log)
        bad = next((row["form"] for row in parity["rows"] if not row["ok"]), None)
        if bad in paths:
            found = bisect_file(final.path, paths[bad], prompts, log, n_threads=n_threads)
            parity["finding"] = found.to_json() if found else None
    (out / "parity.json").write_text(json.dumps(parity, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    raise_if_bad(parity)
    shipped = next(row for row in parity["rows"] if row["form"] == recipe.export.shipped)
    return {name: shipped[name] for name in METRICS}


def _with_unquantized(files: Mapping[str, Exported], model: Path, temporary: Path, log: Log) -> dict[str, Path]:
    """{name: path} of `files`, those of a format behind an unquantized one of it, made in `temporary` where none is
    among them: limits for quantized files are too wide to show every fault of the exporter."""
    gguf, onnx = ({name: file.path for name, file in files.items() if file.format == kind} for kind in FORMATS)
    if gguf and gguf.keys().isdisjoint(FLOAT_FTYPES):
        write_gguf(model, temporary / "F16.gguf", ftype="F16", name=model.name, provenance={}, log=log)
        gguf = {UNQUANTIZED: temporary / "F16.gguf", **gguf}
    if onnx and onnx.keys().isdisjoint(FLOAT_GRAPHS):
        from edgeft.export.onnx.export import export_onnx  # a recipe without ONNX models needs no onnx package
        from edgeft.export.onnx.settings import OnnxSettings

        export_onnx(model, temporary, entries={"fp32": OnnxSettings(dtype="fp32")}, provenance={}, log=log)
        onnx = {UNQUANTIZED_ONNX: temporary / "fp32", **onnx}
    return gguf | onnx
