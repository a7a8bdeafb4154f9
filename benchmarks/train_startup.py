"""How soon `edgeft train` takes its first optimizer step.

    python benchmarks/train_startup.py [--rounds 5] [--out benchmarks/results/train_startup.json]

A hundred chat examples, the embedded base, LoRA. Measured from the start of the process to the first line of
log.jsonl; the peer is a script that imports torch and transformers and loads the same model and tokenizer, to its
last line. Interleaved, fresh processes, wall and processor seconds. `prepared` starts with the data stage up to
date, `fresh` includes it.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edgeft.bench.host import describe_host

ROOT = Path(__file__).resolve().parent.parent
NANO = ROOT / "edgeft" / "assets" / "nano"
BY_HAND = """
import sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
AutoTokenizer.from_pretrained(sys.argv[1]); AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
"""
RECIPE = """
name: startup
data: {train: train.jsonl, validation: test.jsonl, test: test.jsonl}
train: {num_train_epochs: 1, batch_tokens: 512, learning_rate: 1.0e-3}
"""
LIMIT_S = 300.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "train_startup.json")
    arguments = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {"by_hand": [], "prepared": [], "fresh": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _write_project(folder)
        _edgeft("data", folder, folder / "prepared")
        for number in range(arguments.rounds):
            runs["by_hand"].append(_timed([sys.executable, "-c", BY_HAND, str(NANO)], None))
            runs["prepared"].append(_first_step(folder, folder / "prepared"))
            runs["fresh"].append(_first_step(folder, folder / f"fresh-{number}"))
    median = {name: {key: statistics.median(r[key] for r in rows) for key in rows[0]} for name, rows in runs.items()}
    ratios = {
        name: {key: median[name][key] / median["by_hand"][key] for key in ("wall_s", "cpu_s")}
        for name in ("prepared", "fresh")
    }
    result = {"host": describe_host(), "load": os.getloadavg()[0], "median": median, "ratios": ratios, "runs": runs}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({"median": median, "ratios": ratios}, indent=2))


def _write_project(folder: Path) -> None:
    for name, count in (("train", 100), ("test", 10)):
        rows = [
            {
                "messages": [
                    {"role": "user", "content": f"what is {i} plus {len(name)}?"},
                    {"role": "assistant", "content": f"{i} plus {len(name)} is {i + len(name)}."},
                ]
            }
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")


def _command(stage: str, folder: Path, workdir: Path) -> list[str]:
    recipe = str(folder / "recipe.yaml")
    until = ["run", recipe, "--until", stage]
    return [sys.executable, "-m", "edgeft", *until, "--workdir", str(workdir)]


def _edgeft(stage: str, folder: Path, workdir: Path) -> None:
    subprocess.run(_command(stage, folder, workdir), check=True, capture_output=True)


def _first_step(folder: Path, workdir: Path) -> dict[str, float]:
    """Time to the first row of a training's log.jsonl; the run is then killed, its half-done stage removed."""
    for old in workdir.rglob("log.jsonl"):
        old.unlink()
    timed = _timed(_command("train", folder, workdir), workdir)
    subprocess.run(["rm", "-rf", *map(str, workdir.glob("store/**/*train*"))], check=True)
    return timed


def _timed(command: list[str], workdir: Path | None) -> dict[str, float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and time.perf_counter() - began < LIMIT_S:
            if workdir is not None and any(path.stat().st_size for path in workdir.rglob("log.jsonl")):
                break
            time.sleep(0.01)
        wall = time.perf_counter() - began
        process.kill()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": wall, "cpu_s": cpu}


if __name__ == "__main__":
    main()
