"""A stranger's first hour: `edgeft init --data` and `edgeft run`, no edit, on five public tasks. Is the result good?

    EDGEFT_SHARED=FOLDER python benchmarks/five_tasks.py [--tasks NAME ...] [--seeds 1 2 3] [--rows 900] [--workdir DIR]

Each task is `--rows` rows sampled by the seed from a public data set, in the form people have them: CSV of text and
label, or chat JSONL. Scores are of the file that ships, on the test split that init made, beside TF-IDF (LinearSVC for
labels, else the answer of the most similar training question) and the base model without training (zero-shot and
few-shot). Minutes are of `edgeft run`.
"""

import argparse
import csv
import gzip
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers import result_file

from edgeft.bench.host import describe_host

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("EDGEFT_SHARED") or ROOT.parent / "shared") / "data"
SLOTS = ("people", "time", "date", "first_name", "last_name")
KINDS = ("S", "H", "V", "HR", "SH")
TRAINING = (
    "steps", "tokens", "seconds", "train_loss", "eval_loss", "best_step", "stopped_early", "overfitting_since",
)  # fmt: skip
Row = tuple[str, str]  # question, answer


def snips(rng: random.Random) -> list[Row]:
    rows = []
    for file in sorted(SHARED.glob("snips_nlu/*/train_*_full.json")):
        ((intent, some),) = json.loads(file.read_text(encoding="latin-1")).items()
        rows += [("".join(part["text"] for part in row["data"]).strip(), intent) for row in some]
    return rows


def banking(rng: random.Random) -> list[Row]:
    """Twenty of the 77 labels, drawn by the seed."""
    with (SHARED / "banking77/train.csv").open(encoding="utf-8", newline="") as file:
        rows = [(row["text"], row["category"]) for row in csv.DictReader(file)]
    kept = set(rng.sample(sorted({label for _, label in rows}), 20))
    return [row for row in rows if row[1] in kept]


def restaurant(rng: random.Random) -> list[Row]:
    rows = []
    for turn in json.loads((SHARED / "restaurant8k/restaurant8k/train_0.json").read_text("utf-8")):
        text, found = turn["userInput"]["text"], {}
        for label in sorted(turn.get("labels", []), key=lambda label: SLOTS.index(label["slot"])):
            span = label["valueSpan"]
            found[label["slot"]] = text[span.get("startIndex", 0) : span["endIndex"]]
        asked = turn.get("context", {}).get("requestedSlots", [])
        question = " ".join([f"[{slot}]" for slot in SLOTS if slot in asked] + [text])
        rows.append((question, json.dumps(found, ensure_ascii=False)))
    return rows


def wikisql(rng: random.Random) -> list[Row]:
    rows = []
    for line in (SHARED / "wikisql_mlx/train.jsonl").read_text("utf-8").splitlines():
        question, _, answer = json.loads(line)["text"].rpartition("\nA: ")
        rows.append((question, answer))
    return rows


def moderation(rng: random.Random) -> list[Row]:
    """The first kind of harm that a text is labelled with, or none."""
    rows = []
    with gzip.open(SHARED / "openai_moderation/samples-1680.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            rows.append((row["prompt"][:600], next((kind for kind in KINDS if row.get(kind) == 1), "none")))
    return rows


TASKS: dict[str, Callable[[random.Random], list[Row]]] = {
    "snips": snips, "banking20": banking, "restaurant8k": restaurant, "wikisql": wikisql, "moderation": moderation,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--rows", type=int, default=900)
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs/five-tasks")
    parser.add_argument("--out", type=Path, default=result_file("five_tasks.json"))
    arguments = parser.parse_args()
    known: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"runs": []}
    for seed in arguments.seeds:
        for task in arguments.tasks:
            run = one_run(task, seed, arguments.rows, arguments.workdir)
            others = [each for each in known["runs"] if (each["task"], each["seed"]) != (task, seed)]
            known = {"host": describe_host(), "rows": arguments.rows, "runs": [*others, run]}
            arguments.out.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
            print(json.dumps(run), flush=True)


def one_run(task: str, seed: int, n_rows: int, workdir: Path) -> dict[str, Any]:
    """Sample, draft, run; the scores and the minutes."""
    rng = random.Random(seed)
    rows = TASKS[task](rng)
    rows = rng.sample(rows, min(n_rows, len(rows)))
    folder = workdir / f"{task}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    data = _write(folder / "data", task, rows)
    edgeft("init", str(folder / "recipe"), "--data", str(data))
    began = time.monotonic()
    code = edgeft("run", str(folder / "recipe/recipe.yaml"), "--workdir", str(folder / "runs"), may_be=(0, 3))
    minutes = (time.monotonic() - began) / 60
    made = folder / "runs/recipe"
    bench, baseline = (json.loads((made / name).read_text()) for name in ("bench/bench.json", "baseline/baseline.json"))
    trained = json.loads((made / "train/summary.json").read_text())
    return {
        "task": task,
        "seed": seed,
        "examples": len(rows),
        "verdict": {0: "PASS", 3: "FAIL"}[code],
        "minutes": round(minutes, 2),
        "load": round(os.getloadavg()[0], 1),
        "file": _scores(bench["accuracy"]),
        "others": {form["form"]: _scores(form) for form in baseline["forms"]},
        "training": {key: trained.get(key) for key in TRAINING},
    }


def _scores(accuracy: dict[str, Any]) -> dict[str, Any]:
    return {score["metric"]: [round(score["value"], 4), *(round(x, 4) for x in score["ci95"])] for score in
            accuracy["scores"]}  # fmt: skip


def _write(path: Path, task: str, rows: list[Row]) -> Path:
    """Labels as CSV, the others as chat JSONL."""
    if task in ("snips", "banking20", "moderation"):
        path = path.with_suffix(".csv")
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
        return path
    path = path.with_suffix(".jsonl")
    with path.open("w", encoding="utf-8") as file:
        for question, answer in rows:
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    return path


def edgeft(*words: str, may_be: tuple[int, ...] = (0,)) -> int:
    """Run a command; its exit code. Raises SystemExit with what it said when that is none of `may_be`."""
    done = subprocess.run([sys.executable, "-m", "edgeft", *words], capture_output=True, text=True, check=False)
    if done.returncode not in may_be:
        raise SystemExit(f"edgeft {' '.join(words)} ended with {done.returncode}\n{done.stdout}\n{done.stderr[-4000:]}")
    return done.returncode


if __name__ == "__main__":
    main()
