"""Does the demo pass by more than luck? Exact match of its shipped file over seeds, compute types and threads.

    python benchmarks/demo_margin.py [--seeds 1 2 3 4 5] [--workdir DIR] [--out FILE]

Each run is `recipes/home-assistant/recipe.yaml` up to its export, with another seed, and the whole test split
answered by the exported Q4_K_M file in llama.cpp. Seeds change the order of the examples and the swapped values.

A processor without bfloat16 products takes hours for the bfloat16 runs. There (`--emulate`, the default where torch
says so) each product takes its operands in bfloat16 and is rounded to bfloat16, as oneDNN's is, but is
multiplied and summed in float32. The results say which it was. Each run is a process of its own, so that none can
warm another's cache; runs that are in the output file already are not made again.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes/home-assistant/recipe.yaml"
RESULTS = ROOT / "benchmarks/results/demo_margin.json"
FTYPE = "Q4_K_M"
DTYPES = ("float32", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--dtypes", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument("--threads", type=int, help="threads of every run; default: 1 for odd seeds, 2 for even ones")
    parser.add_argument("--emulate", action=argparse.BooleanOptionalAction, help="bfloat16 products by float32 ones")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs/demo-margin")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one_run(*arguments.one, arguments.emulate, arguments.changes, arguments.workdir)))
        return
    for seed in arguments.seeds:
        for dtype in arguments.dtypes:
            threads = arguments.threads or 2 - seed % 2
            name = f"{dtype}, seed {seed}, {threads} thread{'s' if threads > 1 else ''}"
            if name in _known(arguments.out)["runs"]:
                continue
            run = _child(["--one", dtype, str(seed), str(threads)], arguments)
            known = _known(arguments.out)  # again: another process may have added its runs meanwhile
            known["runs"][name] = run
            scores = [each["exact_match"] for each in known["runs"].values()]
            known |= {"n": len(scores), "lowest": min(scores), "mean": round(sum(scores) / len(scores), 4)}
            arguments.out.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
            print(f"{name}: {run['exact_match']:.4f}   lowest of {len(scores)}: {min(scores):.4f}", flush=True)


def _known(out: Path) -> dict[str, Any]:
    known: dict[str, Any] = json.loads(out.read_text("utf-8")) if out.exists() else {"runs": {}}
    return known


def _child(order: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    options = ["--workdir", str(arguments.workdir), *(f"--set={change}" for change in arguments.changes)]
    if arguments.emulate is not None:
        options.append("--emulate" if arguments.emulate else "--no-emulate")
    done = subprocess.run([sys.executable, __file__, *order, *options], stdout=subprocess.PIPE, text=True, check=True)
    run: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return run


def one_run(
    dtype: str, seed: str, threads: str, emulate: bool | None, changes: list[str], workdir: Path
) -> dict[str, Any]:
    """Train, export and score once, in this process; the seconds are of this machine as busy as it is."""
    import torch

    from edgeft.bench.host import describe_host
    from edgeft.console import terminal_log
    from edgeft.machine.process import load_average
    from edgeft.pipeline import run
    from edgeft.recipe_reader import read_recipe
    from edgeft.store import Store

    torch.set_num_threads(int(threads))
    emulated = dtype == "bfloat16" and (
        not torch.ops.mkldnn._is_mkldnn_bf16_supported() if emulate is None else emulate
    )
    own = [f"seed={seed}", f"train.torch_dtype={dtype}", f"train.num_threads={threads}"]
    recipe = read_recipe(RECIPE, (*own, f"export.gguf=[{{ftype: {FTYPE}}}]", *changes))
    began = time.perf_counter()
    with float32_products() if emulated else contextlib.nullcontext():
        result = run(recipe, Store(workdir / f"{dtype}-{seed}-{threads}"), terminal_log(), until="export")
    seconds = time.perf_counter() - began
    artifacts = result.artifacts
    (file,) = artifacts["export"].path.glob(f"*{FTYPE}.gguf")
    right, n = score(file, artifacts["data"].file("test.jsonl"), int(threads))
    return {
        "exact_match": round(right / n, 4),
        "n": n,
        "torch_dtype": dtype + (" (rounded to it, multiplied in float32)" if emulated else ""),
        "n_threads": int(threads),
        "train": {k: round(v, 4) for k, v in artifacts["train"].metrics.items() if k in ("steps", "tokens", "seconds")},
        "seconds_to_export": round(seconds, 1),
        "load_average": load_average(),
        "host": describe_host(),
    }


def score(file: Path, test: Path, threads: int) -> tuple[int, int]:
    """Answers of the file that are the expected text, and how many were asked for."""
    from edgeft import runtime

    examples = [json.loads(line)["messages"] for line in test.read_text("utf-8").splitlines()]
    with runtime.load(file, n_ctx=256, n_threads=threads) as model:
        said = [model.chat(messages[:-1], temperature=0.0, max_new_tokens=64).text for messages in examples]
    return sum(text == m[-1]["content"] for text, m in zip(said, examples, strict=True)), len(examples)


@contextlib.contextmanager
def float32_products() -> Iterator[None]:
    """Products of bfloat16 matrices by float32 ones: the same operands, sums in float32, the result rounded."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    aten = torch.ops.aten
    products = {aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default}

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in products and args[0].dtype == torch.bfloat16:
                wide = [a.float() if isinstance(a, torch.Tensor) else a for a in args]
                return func(*wide, **(kwargs or {})).bfloat16()
            return func(*args, **(kwargs or {}))

    with Products():
        yield


if __name__ == "__main__":
    main()
