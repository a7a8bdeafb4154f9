"""What recovery gains: KL(float32 ‖ file) and task accuracy of 4-bit files, before and after training for their grid.

    edgeft run recipes/home-assistant/recipe.yaml --until merge --workdir WORK
    python benchmarks/recovery.py NAME RECIPE --merge WORK/store/merge-… --data WORK/store/data-… [--set KEY=VALUE …]

Of the fine-tuned model each file is made twice, of the same bytes: of the weights as they are, and as the `recover`
stage leaves them for that file. GGUF files are Q4_0, and Q4_K_M with an importance matrix, as llama.cpp rounds them;
the ONNX folder is int4 in blocks of 32. They and the float32 form read the same held-out conversations in llama.cpp,
or in onnxruntime: mean KL in nats a token. Each then answers the test set greedily. `--set` gives keys of the recipe's
section `recover`. The result joins those in the output file.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf_quality import ROOT, scores, tokens_of, write

from edgeft.artifact import Artifact, read_artifact, write_manifest
from edgeft.bench.accuracy import Scoring, evaluate
from edgeft.bench.examples import Example, read_examples, take
from edgeft.bench.host import backend_versions, describe_host, load_average
from edgeft.console import silent_log, terminal_log
from edgeft.export.onnx.export import export_onnx
from edgeft.export.onnx.settings import OnnxSettings
from edgeft.export.onnx.source_grids import onnx_source_grids
from edgeft.parity.numbers import kl_divergence
from edgeft.recipe import Recipe
from edgeft.recipe_reader import read_recipe
from edgeft.runtime import load
from edgeft.sections import Export, Gguf
from edgeft.sections_recover import Recover
from edgeft.stages import export, recover

FILES: dict[str, Gguf | OnnxSettings] = {
    "Q4_0": Gguf(ftype="Q4_0"),
    "Q4_K_M + imatrix": Gguf(ftype="Q4_K_M", imatrix=True),
    "ONNX int4": OnnxSettings(),
}
METRIC = "exact_match"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--merge", type=Path, required=True, help="artifact of the fine-tuned model")
    parser.add_argument("--data", type=Path, required=True, help="artifact of its data")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="keys of `recover`")
    parser.add_argument("--only", choices=FILES, action="append", help="files to make (all)")
    parser.add_argument("--test-tokens", type=int, default=4096, help="held-out tokens of the KL")
    parser.add_argument("--examples", type=int, default=300, help="test examples that are answered")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/recovery.json")
    arguments = parser.parse_args()
    recipe = read_recipe(arguments.recipe, tuple(f"recover.{each}" for each in arguments.set) or ("recover={}",))
    inputs = {"data": read_artifact(arguments.data), "merge": read_artifact(arguments.merge)}
    test = inputs["data"].file("test.jsonl")
    held_out = tokens_of(arguments.merge, test, None, arguments.test_tokens).sequences
    examples = take(read_examples(test), arguments.examples, recipe.seed)
    content = json.loads(arguments.out.read_text("utf-8")) if arguments.out.exists() else {}
    result = content.setdefault("models", {}).setdefault(arguments.name, {"files": {}})
    for label in arguments.only or FILES:
        with tempfile.TemporaryDirectory() as temporary:
            rows = compare(label, recipe, inputs, Path(temporary), held_out, examples)
        print(json.dumps({label: rows}, indent=1))
        result["files"][label] = rows | {"recover": _section(recipe).model_dump(), "load_average": load_average()}
        content |= {"host": describe_host(), "versions": backend_versions()}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def compare(
    label: str,
    recipe: Recipe,
    inputs: dict[str, Artifact],
    out: Path,
    held_out: Sequence[Sequence[int]],
    examples: Sequence[Example],
) -> dict[str, Any]:
    """The file `label` plain and recovered, beside the float32 form in the same runtime."""
    entry, started = FILES[label], time.perf_counter()
    if isinstance(entry, Gguf):
        reference, plain, recovered, metrics = _gguf_files(entry, recipe, inputs, out)
    else:
        reference, plain, recovered, metrics = _onnx_files(entry, recipe, inputs, out)
    minutes = (time.perf_counter() - started) / 60
    expected = scores(reference, held_out)
    rows: dict[str, Any] = {"float32": {METRIC: accuracy(reference, examples)}}
    for what, path in (("plain", plain), ("recovered", recovered)):
        pairs = zip(expected, scores(path, held_out), strict=True)
        kl = float(np.concatenate([kl_divergence(*pair) for pair in pairs]).mean())
        rows[what] = {"bytes": _n_bytes(path), "KL": kl, METRIC: accuracy(path, examples)}
    rows["recovered"] |= {"in training": metrics, "minutes": round(minutes, 1)}
    return rows | {"KL ratio": rows["recovered"]["KL"] / rows["plain"]["KL"]}


Made = tuple[Path, Path, Path, dict[str, float]]
"""The float32 form, the plain file, the recovered one, and the metrics of the recovery."""


def _gguf_files(entry: Gguf, recipe: Recipe, inputs: dict[str, Artifact], out: Path) -> Made:
    write(inputs["merge"].path, out / "F32.gguf", ftype="F32")
    single = recipe.model_copy(update={"export": Export(gguf=[entry])})
    folders = [out / name for name in ("recover", "plain", "recovered")]
    for folder in folders:
        folder.mkdir()
    metrics = recover.run(single, inputs, folders[0], terminal_log())
    trained = write_manifest(folders[0], "recover", "key", metrics)
    export.run(single, inputs, folders[1], silent_log())
    export.run(single, inputs | {"recover": trained}, folders[2], silent_log())
    name = f"{recipe.name}-{entry.ftype}.gguf"
    return out / "F32.gguf", folders[1] / name, folders[2] / name, metrics


def _onnx_files(entry: OnnxSettings, recipe: Recipe, inputs: dict[str, Artifact], out: Path) -> Made:
    model, trained = inputs["merge"], out / "recover"
    trained.mkdir()
    metrics = recover.recover_for(
        entry.name,
        onnx_source_grids(model.path, entry),
        _section(recipe),
        model,
        inputs["data"],
        trained,
        terminal_log(),
        seed=recipe.seed,
    )
    settings: dict[str, Any] = {"provenance": {}, "log": silent_log()}
    export_onnx(model.path, out / "plain", entries={"fp32": OnnxSettings("fp32"), "int4": entry}, **settings)
    export_onnx(trained, out / "recovered", entries={"int4": entry}, **settings)
    return out / "plain/fp32", out / "plain/int4", out / "recovered/int4", metrics


def accuracy(path: Path, examples: Sequence[Example]) -> float:
    """The share of right answers."""
    with load(path, n_ctx=512, n_threads=1) as model:
        found = evaluate(model, examples, Scoring(metrics=[METRIC]), max_new_tokens=64, log=silent_log())
    return found.values()[METRIC]


def _section(recipe: Recipe) -> Recover:
    assert recipe.recover is not None
    return recipe.recover


def _n_bytes(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.name.startswith("model")]
    return sum(file.stat().st_size for file in files)


if __name__ == "__main__":
    main()
