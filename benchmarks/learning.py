"""Is the learning real? Test figures of six recipes over seeds: mean and standard deviation, and the curves.

    python benchmarks/learning.py [--task NAME ...] [--seeds 1 2 3] [--workdir runs] [--out FILE]

Each (task, seed) is one `edgeft run` of the recipe with that seed and nothing else changed. The figure is on
the whole official test split, which no choice in the recipe was made on:

- snips-intent, snips-intent-nano, banking77: the shipped GGUF file, greedy, in llama.cpp (stage `bench`)
- restaurant8k: the same, the F1 of the fields of its JSON
- gsm8k: the same, the first 200 sums; a model of seven millions learns their form, and hardly any right answer
- banking77-minilm: the trained encoder in torch (stage `train`)

Results join those in the output file, so that tasks and seeds can be run one at a time. Runs of an older
recipe, seen by the hash of its file, are left out of the mean.
"""

import argparse
import hashlib
import json
import platform
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TASKS = {  # task -> (stage the figure is from, its metric, what else of that run is kept)
    "snips-intent": ("bench", "label_accuracy", ("size_bytes",)),
    "snips-intent-nano": ("bench", "label_accuracy", ("size_bytes",)),
    "banking77": ("bench", "label_accuracy", ("macro_f1", "size_bytes")),
    "restaurant8k": ("bench", "json_field_f1", ("exact_match", "json_valid", "size_bytes")),
    "gsm8k": ("bench", "numeric_answer", ("exact_match", "size_bytes")),
    "banking77-minilm": ("train", "test_label_accuracy", ("test_macro_f1", "label_accuracy")),
}
KEPT_OF_TRAIN = ("steps", "tokens", "seconds", "train_loss", "eval_loss", "trained_parameters")
PACKAGES = ("torch", "transformers", "llama-cpp-python")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=sorted(TASKS), nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs", help="folder of the runs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/learning.json")
    arguments = parser.parse_args()
    for task in arguments.task:
        for seed in arguments.seeds:
            run = run_recipe(task, seed, arguments.workdir)
            result = merge_run(_read(arguments.out), task, seed, run)
            arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
            summary = result["tasks"][task]
            print(f"{task} seed {seed}: {run['value']:.4f}  (mean {summary['mean']:.4f} of {summary['n']})", flush=True)


def run_recipe(task: str, seed: int, workdir: Path) -> dict[str, Any]:
    """One run of the task's recipe; its test figure and what it cost. Exits when the run fails."""
    stage, metric, kept = TASKS[task]
    command = [sys.executable, "-m", "edgeft", "run", str(_recipe(task)), "--until", stage, "--json"]
    done = subprocess.run(
        [*command, "--set", f"seed={seed}", "--workdir", str(workdir)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    if done.returncode:
        raise SystemExit(f"{task} seed {seed}: edgeft run ended with {done.returncode}; see above")
    stages = json.loads(done.stdout)["stages"]
    numbers = stages[stage]["metrics"]
    train = stages["train"]["metrics"]
    return {
        "value": numbers[metric],
        **{name: numbers[name] for name in kept if name in numbers},
        "train": {name: round(train[name], 4) for name in KEPT_OF_TRAIN if name in train},
        "curve": curve(workdir / task / "train" / "log.jsonl"),
        "recipe_sha256": _hash(task),
    }


def curve(log: Path) -> list[dict[str, float]]:
    """Every evaluation of a training's log: step, and the loss per token of what it trained on and of validation."""
    rows = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    return [{name: round(value, 4) for name, value in row.items()} for row in rows if "eval_loss" in row]


def merge_run(result: dict[str, Any], task: str, seed: int, run: dict[str, Any]) -> dict[str, Any]:
    """`result` with this run in it: mean and sample standard deviation over the seeds of the same recipe."""
    stage, metric, _ = TASKS[task]
    tasks = result.setdefault("tasks", {})
    runs = {**tasks.get(task, {}).get("runs", {}), str(seed): run}
    runs = {name: one for name, one in sorted(runs.items()) if one["recipe_sha256"] == run["recipe_sha256"]}
    values = [one["value"] for one in runs.values()]
    tasks[task] = {
        "recipe": f"recipes/{task}.yaml",
        "figure": f"{metric} of the stage {stage}, test split",
        "n": len(values),
        "mean": round(statistics.fmean(values), 5),
        "sd": round(statistics.stdev(values), 5) if len(values) > 1 else None,
        "runs": runs,
    }
    result["versions"] = {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}
    return result


def _recipe(task: str) -> Path:
    return ROOT / "recipes" / f"{task}.yaml"


def _hash(task: str) -> str:
    return hashlib.sha256(_recipe(task).read_bytes()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


if __name__ == "__main__":
    main()
