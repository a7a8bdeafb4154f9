"""Our ONNX folders in other people's loaders: the same greedy tokens as in our own runtime?

    python benchmarks/onnx_loaders.py [--model FOLDER] [--genai PATH] [--node FOLDER] [--optimum PYTHON] [--out FILE]

PATH is where onnxruntime-genai is installed (for PYTHONPATH; ONNXRUNTIME_GENAI), FOLDER one whose node_modules holds
@huggingface/transformers (TRANSFORMERS_JS; node must be on the PATH), PYTHON an interpreter with optimum-onnx, which
needs transformers before 4.58 (OPTIMUM_PYTHON). A loader that is not given is left out, and said so in the result.
MODEL is a folder that transformers saved; without it a random tiny Llama is made. Each loader gets token ids, so
that only the graph and what is said around it are tried; transformers.js tokenizes by itself. optimum gets the prompts
once more as one batch, padded in front.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeft.bench.host import describe_host, versions
from edgeft.console import silent_log
from edgeft.export.onnx.export import export_onnx
from edgeft.export.onnx.settings import OnnxSettings
from edgeft.machine.silence import no_telemetry
from edgeft.runtime import load

ROOT = Path(__file__).resolve().parent.parent
DTYPES = {"fp32": "fp32", "int8": "q8", "int4": "q4"}
"""Ours, and transformers.js' word for it."""
PROMPTS = ("turn on the kitchen light", "Once upon a time, there was a little girl who", "set a timer for 10 minutes")

GENAI = """
import json, sys
import onnxruntime_genai as og
folder, prompts, n = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
model, answers = og.Model(folder), []
for ids in prompts:
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(ids) + n, do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    answers.append([int(token) for token in generator.get_sequence(0)][len(ids):])
print(json.dumps({"version": og.__version__, "answers": answers}))
"""
OPTIMUM = """
import importlib.metadata, json, sys
import torch
from optimum.onnxruntime import ORTModelForCausalLM
folder, prompts, n = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
model, answers = ORTModelForCausalLM.from_pretrained(folder), []
for ids in prompts:
    row = torch.tensor([ids])
    made = model.generate(input_ids=row, attention_mask=torch.ones_like(row), max_new_tokens=n, do_sample=False)
    answers.append(made[0, len(ids):].tolist())
width = max(map(len, prompts))
rows = torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts])
mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
made = model.generate(input_ids=rows, attention_mask=mask, max_new_tokens=n, do_sample=False)
print(json.dumps({"version": importlib.metadata.version("optimum-onnx"), "answers": answers,
                  "together": made[:, width:].tolist()}))
"""
NODE = """
import { AutoModelForCausalLM, AutoTokenizer, env } from '@huggingface/transformers';
const [, , folder, dtype, texts, n] = process.argv;
env.allowRemoteModels = false;
env.localModelPath = '/';
const tokenizer = await AutoTokenizer.from_pretrained(folder);
const model = await AutoModelForCausalLM.from_pretrained(folder, { dtype });
const prompts = [], answers = [];
for (const text of JSON.parse(texts)) {
  const inputs = tokenizer(text, { add_special_tokens: false });
  const made = await model.generate({ ...inputs, max_new_tokens: Number(n), do_sample: false });
  prompts.push(inputs.input_ids.tolist()[0].map(Number));
  answers.push(made.tolist()[0].map(Number).slice(prompts.at(-1).length));
}
console.log(JSON.stringify({ version: env.version, prompts, answers }));
"""

Run = Callable[[Path, str], dict[str, Any]]


def main() -> None:
    no_telemetry()  # children inherit it
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--genai", type=Path, default=os.environ.get("ONNXRUNTIME_GENAI"))
    parser.add_argument("--node", type=Path, default=os.environ.get("TRANSFORMERS_JS"))
    parser.add_argument("--optimum", type=Path, default=os.environ.get("OPTIMUM_PYTHON"))
    parser.add_argument("--tokens", type=int, default=32, help="Greedy tokens of each answer.")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "onnx_loaders.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = compare(arguments, Path(scratch))
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({row["loader"] + " " + row["dtype"]: row["equal"] for row in result["rows"]}, indent=2))


def compare(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Every loader on every type, against our runtime on the same folder's weights."""
    model = arguments.model or tiny_model(scratch / "model")
    runs = loaders(arguments)
    rows = []
    for dtype in DTYPES:
        layouts = ("genai", "transformers.js")
        entries = {f"{layout}-{dtype}": OnnxSettings(dtype=dtype, layout=layout) for layout in layouts}  # type: ignore[arg-type]
        export_onnx(model, scratch, entries=entries, provenance={}, log=silent_log())
        with load(scratch / f"genai-{dtype}", n_threads=1) as ours:
            prompts = [ours.tokenize(text) for text in PROMPTS]
            expected = [ours.generate(ids, max_new_tokens=arguments.tokens) for ids in prompts]
            ends = ours.eos_ids
        for name, (layout, run) in runs.items():
            made = run(scratch / f"{layout}-{dtype}", json.dumps(prompts))
            answers = [without_end(answer, ends) for answer in made["answers"]]
            together = [without_end(answer, ends) for answer in made.get("together", made["answers"])]
            same_prompts = made.get("prompts", prompts) == prompts
            rows.append(
                {
                    "loader": name,
                    "version": made["version"],
                    "dtype": dtype,
                    "equal": same_prompts and answers == together == expected,
                    "tokens": [len(answer) for answer in expected],
                    "answers": answers,
                    "expected": expected,
                }
            )
    left_out = [name for name in ("onnxruntime-genai", "transformers.js", "optimum-onnx") if name not in runs]
    return {
        "host": describe_host(),
        "versions": versions(("onnxruntime",)),
        "model": str(arguments.model.name) if arguments.model else "tiny random Llama",
        "left_out": left_out,
        "rows": rows,
    }


def loaders(arguments: argparse.Namespace) -> dict[str, tuple[str, Run]]:
    """name -> (layout it is given, how it is run)"""
    n, found = str(arguments.tokens), {}
    if arguments.genai:
        path = {"PYTHONPATH": str(arguments.genai)}
        found["onnxruntime-genai"] = (
            "genai",
            lambda at, ids: told([sys.executable, "-c", GENAI, str(at), ids, n], path),
        )
    if arguments.node:
        script = Path(arguments.node) / "edgeft_loader.mjs"
        script.write_text(NODE)
        texts = json.dumps(PROMPTS)

        def in_node(at: Path, _: str) -> dict[str, Any]:
            return told(["node", str(script), str(at), DTYPES[at.name.split("-")[-1]], texts, n], {})

        found["transformers.js"] = ("transformers.js", in_node)
    if arguments.optimum:
        python = str(arguments.optimum)
        found["optimum-onnx"] = ("genai", lambda at, ids: told([python, "-c", OPTIMUM, str(at), ids, n], {}))
    return found


def told(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """The JSON object in the last line a loader prints."""
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed on {command[3]}:\n{done.stderr[-3000:]}")
    content: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return content


def without_end(answer: list[int], ends: frozenset[int]) -> list[int]:
    """Up to the first end token."""
    return answer[: next((at for at, token in enumerate(answer) if token in ends), len(answer))]


def tiny_model(folder: Path) -> Path:
    """optimum takes the width of a head for hidden_size / heads, so here it is."""
    sys.path.insert(0, str(ROOT))
    from tests.lively import make_lively_llama

    return make_lively_llama(folder, head_dim=16, attention_bias=False, mlp_bias=False)


if __name__ == "__main__":
    main()
