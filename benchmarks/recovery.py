"""What recovery gains: KL(float32 ‖ file) and task accuracy of 4-bit files, before and after training for their grid.

    edgeft run recipes/home-assistant/recipe.yaml --until merge --workdir WORK
    python benchmarks/recovery.py NAME RECIPE --merge WORK/store/merge-… --data WORK/store/data-… [--set KEY=VALUE …]

Of the fine-tuned model each file is made twice, of the same bytes: of the weights as they are, and as the `recover`
stage leaves them for that file. GGUF files are Q4_0, and Q4_K_M with an importance matrix, as llama.cpp rounds them;
the ONNX folder is int4 in blocks of 32, plain by the exporter's default search of scales. They and the float32 form
read the same held-out tokens in llama.cpp, or in onnxruntime: mean KL in nats a token. Each then answers the test set
greedily. `--set` gives keys of the recipe's section `recover`. The result joins those in the output file.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from quality import scores, tokens_of

from edgeft.artifact import Artifact, read_artifact, write_manifest
from edgeft.bench.accuracy import Scoring, evaluate
from edgeft.bench.examples import Example, read_examples, take
from edgeft.bench.host import backend_versions, describe_host
from edgeft.console import silent_log, terminal_log
from edgeft.machine.process import load_average
from edgeft.parity.numbers import kl_divergence
from edgeft.recipe import Recipe
from edgeft.recipe_reader import read_recipe
from edgeft.runtime import load
from edgeft.sections import Export, Gguf, Onnx
from edgeft.sections.recover import Recover
from edgeft.stages import export, recover
from edgeft.torch_dtype import settled

RESULTS = Path(__file__).resolve().parent / "results" / "recovery.json"
FILES: dict[str, Gguf | Onnx] = {
    "Q4_0": Gguf(ftype="Q4_0"),
    "Q4_K_M + imatrix": Gguf(ftype="Q4_K_M", imatrix=True),
    "ONNX int4": Onnx(dtype="int4"),
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
    parser.add_argument("--test-text", type=Path, help="general text, which recovery does not train on")
    parser.add_argument("--test-tokens", type=int, default=4096, help="held-out tokens of the KL, of each kind")
    parser.add_argument("--examples", type=int, default=300, help="test examples that are answered")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    given = read_recipe(arguments.recipe, tuple(f"recover.{each}" for each in arguments.set) or ("recover={}",))
    recipe, _ = settled(given)
    inputs = {"data": read_artifact(arguments.data), "merge": read_artifact(arguments.merge)}
    test = inputs["data"].file("test.jsonl")
    held_out = {
        kind: tokens_of(arguments.merge, chat, text, arguments.test_tokens).sequences
        for kind, chat, text in (("task prompts", test, None), ("held-out text", None, arguments.test_text))
        if chat or text
    }
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
    held_out: Mapping[str, Sequence[Sequence[int]]],
    examples: Sequence[Example],
) -> dict[str, Any]:
    """The file `label` plain and recovered, beside the float32 form in the same runtime."""
    started = time.perf_counter()
    reference, plain, recovered, metrics = make_files(FILES[label], recipe, inputs, out)
    minutes = (time.perf_counter() - started) / 60
    rows: dict[str, Any] = {"float32": {METRIC: accuracy(reference, examples)}}
    for what, path in (("plain", plain), ("recovered", recovered)):
        rows[what] = {"bytes": _n_bytes(path), METRIC: accuracy(path, examples)}
        for kind, sequences in held_out.items():
            pairs = zip(scores(reference, sequences), scores(path, sequences), strict=True)
            rows[what][f"{kind}: KL"] = float(np.concatenate([kl_divergence(*pair) for pair in pairs]).mean())
    for kind in held_out:
        rows["recovered"][f"{kind}: KL ratio"] = rows["recovered"][f"{kind}: KL"] / rows["plain"][f"{kind}: KL"]
    return rows | {"training": metrics, "minutes": round(minutes, 1)}


def make_files(
    entry: Gguf | Onnx, recipe: Recipe, inputs: dict[str, Artifact], out: Path
) -> tuple[Path, Path, Path, dict[str, float]]:
    """The float32 form, the plain one, the recovered one, and the metrics of the recovery."""
    is_gguf = isinstance(entry, Gguf)
    files = Export(
        gguf=[Gguf(ftype="F32"), *([entry] if isinstance(entry, Gguf) else [])],
        onnx=[Onnx(dtype="fp32"), entry] if isinstance(entry, Onnx) else [],
    )
    target = entry.ftype if isinstance(entry, Gguf) else entry.name
    section = _section(recipe).model_copy(update={"target": target})
    single = recipe.model_copy(update={"export": files, "recover": section})
    folders = [out / name for name in ("recover", "plain", "recovered")]
    for folder in folders:
        folder.mkdir()
    metrics = recover.run(single, inputs, folders[0], terminal_log())
    trained = write_manifest(folders[0], "recover", "key", metrics)
    export.run(single, inputs, folders[1], silent_log())
    export.run(single, inputs | {"recover": trained}, folders[2], silent_log())
    names = [f"{recipe.name}-{ftype}.gguf" if is_gguf else ftype for ftype in ("F32" if is_gguf else "fp32", target)]
    return folders[1] / names[0], folders[1] / names[1], folders[2] / names[1], metrics


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
