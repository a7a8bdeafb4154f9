"""What the benchmarks against TRL share: the shapes, a run in a fresh process, medians and ratios."""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULT = "RESULT "
MEMORY = {"peak_rss": "peak_rss_mb"}
SHAPES = {
    "smollm2-135m": {
        "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "intermediate_size": 1536, "vocab_size": 49_152,
    },
    "qwen2.5-0.5b": {
        "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "intermediate_size": 4864, "vocab_size": 151_936,
    },
    "tiny": {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 128, "vocab_size": 512,
    },
}  # fmt: skip


def result_file(name: str) -> Path:
    """Where a benchmark writes its result: processors of narrow vectors have a folder of their own, so that numbers
    of different instruction sets never replace each other."""
    from edgeft.machine.instruction_sets import instruction_sets

    sets = instruction_sets()
    folder = "" if "avx512f" in sets else "avx2" if "avx2" in sets else "other"
    (HERE / "results" / folder).mkdir(parents=True, exist_ok=True)
    return HERE / "results" / folder / name


def measure(script: str, name: str, arguments: argparse.Namespace, options: Sequence[str]) -> dict[str, Any]:
    """One run of contender `name` in a fresh process of `script`, which gets `options` of the arguments."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(arguments.threads),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")])),
    }
    if name.startswith("trl") and arguments.peer_path:
        environment["PYTHONPATH"] += os.pathsep + str(arguments.peer_path)
    command = [sys.executable, script, "--run", name]
    for option in options:
        command += ["--" + option.replace("_", "-"), str(getattr(arguments, option))]
    load = os.getloadavg()[0]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    line = next((line for line in done.stdout.splitlines() if line.startswith(RESULT)), None)
    if line is None:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return {"contender": name, "load_before": round(load, 2)} | json.loads(line.removeprefix(RESULT))


def by_contender(runs: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The runs of each contender, in order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        found.setdefault(run["contender"], []).append(run)
    return found


def medians_and_ratios(
    runs: list[dict[str, Any]], kept: Sequence[str], rates: dict[str, str], memory: dict[str, str] = MEMORY
) -> dict[str, Any]:
    """Medians of the numbers `kept` of each contender, and ours over every peer's: `rates` and `memory`
    (ratio: number)."""
    table = {
        name: {key: statistics.median(run[key] for run in some) for key in kept if key in some[0]}
        for name, some in by_contender(runs).items()
    }
    numbers = rates | memory
    ratios = {
        f"{ours} vs {peer}": {ratio: table[ours][key] / table[peer][key] for ratio, key in numbers.items()}
        for ours in table
        if ours.startswith("edgeft")
        for peer in table
        if peer.startswith("trl")
    }
    return {"median": table, "ratios": ratios}


def race(
    script: str,
    parser: argparse.ArgumentParser,
    contenders: Sequence[str],
    options: Sequence[str],
    *,
    child: Callable[[argparse.Namespace], None],
    compare: Callable[[list[dict[str, Any]]], dict[str, Any]],
    plan: Callable[[argparse.Namespace], tuple[str, dict[str, Any]]],
    default: Sequence[str] | None = None,
) -> None:
    """The main program of `script`: the contenders take turns, each run a fresh process of it, which calls `child`.

    `parser` has the arguments of its own (`rounds` and `threads` among them), of which a run gets `options`. `plan`
    names the result file and what of the settings is not among the options.
    """
    parser.add_argument("--contenders", nargs="+", choices=contenders, default=list(default or contenders))
    parser.add_argument("--peer-path", type=Path, help="folder that TRL was installed into")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--run", choices=contenders, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        child(arguments)
        return
    name, further = plan(arguments)
    settings = {option: getattr(arguments, option) for option in options} | further

    def run(contender: str) -> dict[str, Any]:
        return measure(script, contender, arguments, options)

    take_turns(arguments.contenders, arguments.rounds, run, compare, settings, arguments.out or result_file(name))


def take_turns(
    contenders: Sequence[str],
    rounds: int,
    run: Callable[[str], dict[str, Any]],
    compare: Callable[[list[dict[str, Any]]], dict[str, Any]],
    settings: dict[str, Any],
    out: Path,
) -> None:
    """Let the contenders take turns; `out` holds everything so far after each run."""
    from edgeft.bench.host import describe_host

    runs: list[dict[str, Any]] = []
    for _ in range(rounds):
        for name in contenders:
            runs.append(run(name))
            print(json.dumps(runs[-1]), flush=True)
            result = {"host": describe_host(), "settings": settings, **compare(runs), "runs": runs}
            out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(compare(runs)["ratios"], indent=2))
