"""Do runs cost what `edgeft run --dry-run` says? Predicted against happened, for runs that are finished.

    python benchmarks/preflight.py RUN... [--out benchmarks/results/preflight.json]

RUN is `<workdir>/<recipe name>` of a finished `edgeft run`. The recipe is read back from the manifests, the tokens from
the prepared data, and the prediction is made as if nothing but the data were up to date. Happened: minutes of training
and its peak memory from the stage's own metrics (peak_rss_bytes is missing in runs from before it was recorded, and is
that of the whole process, so of the stages before it too); minutes of other stages between the times of two manifests,
below a second left out; bytes of every artifact. The row `whole` has everything after the data was prepared: minutes
and bytes in all, imports included, and the largest memory that a stage told. The load is that of the machine now, not
then: what else ran beside a run is known to whoever ran it. The speed of the machine is measured now, or was before.
"""

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgeft.artifact import Artifact, read_artifact
from edgeft.bench.host import describe_host
from edgeft.console import terminal_log
from edgeft.pipeline import State
from edgeft.plan import Planned, steps_of
from edgeft.preflight import Speed, estimate, estimate_training, speed_of_this_machine
from edgeft.preflight.tokens import read_tokens
from edgeft.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
SHORTEST_S = 1.0
LEAST_BYTES = 1e5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "preflight.json")
    args = parser.parse_args()
    speed = speed_of_this_machine(terminal_log())
    rows = [{"number": at} | row for at, folder in enumerate(args.runs, 1) for row in compare(folder, speed)]
    host = describe_host() | {"load_now": os.getloadavg(), "products_flops_per_s": asdict(speed)}
    result = {"host": host, "rows": rows}
    args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{'no.':3} {'run':16} {'stage':9} {'what':11} {'predicted':>11} {'happened':>11} {'ratio':>6}")
    for row in rows:
        values = f"{row['predicted']:11.4g} {row['happened']:11.4g} {row['ratio']:6.2f}"
        print(f"{row['number']:<3} {row['run']:16} {row['stage']:9} {row['what']:11} {values}")


def compare(folder: Path, speed: Speed) -> list[dict[str, Any]]:
    """Rows of the table for one run: minutes, megabytes on disk, and megabytes of memory where it is known."""
    artifacts = {path.name: read_artifact(path.resolve()) for path in folder.iterdir() if path.name != "pretrain"}
    recipe = recipe_of(folder.name, artifacts)
    steps = steps_of(recipe)
    states = [State(Planned(s, "", {}), artifacts["data"] if s.stage == "data" else None) for s in steps]
    rows: list[dict[str, Any]] = []

    def add(stage: str, what: str, predicted: float | None, happened: float) -> None:
        if predicted is not None:
            row = {"run": folder.name, "stage": stage, "what": what, "predicted": predicted, "happened": happened}
            rows.append(row | {"ratio": predicted / happened})

    costs = whole = estimate(recipe, states, speed)
    # Without the imports: `seconds` of the stage's metrics does not have them either.
    costs = costs | {"train": estimate_training(recipe, read_tokens(artifacts["data"]), speed)}
    for stage, cost in costs.items():
        if stage not in artifacts:
            continue
        artifact = artifacts[stage]
        seconds = artifact.metrics.get("seconds") if stage == "train" else since_the_last(artifact, artifacts)
        if seconds and seconds >= SHORTEST_S:
            add(stage, "minutes", cost.minutes, seconds / 60)
        if size_of(artifact) >= LEAST_BYTES and cost.disk_bytes is not None:
            add(stage, "disk MB", (cost.disk_bytes - cost.working_bytes) / 1e6, size_of(artifact) / 1e6)
        if "peak_rss_bytes" in artifact.metrics and cost.ram_bytes is not None:
            add(stage, "memory MB", cost.ram_bytes / 1e6, artifact.metrics["peak_rss_bytes"] / 1e6)
    made = {stage: (whole[stage], artifacts[stage]) for stage in whole if stage in artifacts}
    seconds = max(map(ended, artifacts.values())) - ended(artifacts["data"])
    add("whole", "minutes", sum(cost.minutes or 0.0 for cost, _ in made.values()), seconds / 60)
    kept = sum((cost.disk_bytes or 0.0) - cost.working_bytes for cost, _ in made.values())
    add("whole", "disk MB", kept / 1e6, sum(size_of(artifact) for _, artifact in made.values()) / 1e6)
    told = [
        (cost.ram_bytes, artifact.metrics["peak_rss_bytes"])
        for cost, artifact in made.values()
        if cost.ram_bytes is not None and "peak_rss_bytes" in artifact.metrics
    ]
    if told:
        add("whole", "memory MB", max(ram for ram, _ in told) / 1e6, max(peak for _, peak in told) / 1e6)
    return rows


def recipe_of(name: str, artifacts: dict[str, Artifact]) -> Recipe:
    """The recipe a run was made from, as far as its manifests hold it; paths that no estimate reads are made up."""
    values: dict[str, Any] = {}
    for artifact in artifacts.values():
        for key, value in artifact.made_from.items():
            kind, _, what = key.partition(" ")
            section, _, rest = what.partition(".")
            if kind == "recipe" and section in ("train", "merge", "distill", "export", "parity", "bench"):
                at = values.setdefault(section, {})
                *path, last = rest.split(".")
                for part in path:
                    at = at.setdefault(part, {})
                at[last] = value
    base = json.loads((artifacts["train"].path / "summary.json").read_bytes())["base"]
    data = {"train": "-", "validation": "-", "test": "-", "text": "-", "preference": "-"}
    return Recipe.build({"name": name, "model": {"base": base}, "data": data, **values}, ROOT / "recipes")


def since_the_last(artifact: Artifact, artifacts: dict[str, Artifact]) -> float:
    """Seconds since another stage's manifest was written; 0 for the first."""
    earlier = [ended(other) for other in artifacts.values() if ended(other) < ended(artifact)]
    return ended(artifact) - max(earlier) if earlier else 0.0


def ended(artifact: Artifact) -> float:
    """When its manifest was written, in seconds."""
    return (artifact.path / "manifest.json").stat().st_mtime


def size_of(artifact: Artifact) -> int:
    """Bytes of everything in it."""
    return sum(path.stat().st_size for path in artifact.path.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
