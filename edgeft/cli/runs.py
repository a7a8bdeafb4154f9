"""`edgeft runs`: the runs there are, and with --watch how far a running one is."""

import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from edgeft.cli._options import json_option, workdir_option
from edgeft.cli._output import print_json, show_verdict, size, table

POLL_S, PLAIN_INTERVAL_S = 1.0, 10.0
EXIT_UNFINISHED, EXIT_FAILED = 1, 3


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft runs`."""

    @click.command(
        name,
        help=f"{text}\n\nRUN is the name of one, or its folder. With --watch, the one that is running is followed "
        "to its end: exit code 1 when it stops before, 3 when a budget is not met.",
    )
    @click.argument("run", required=False)
    @click.option("--watch", is_flag=True, help="Follow a running one: stage, loss, time left. Ctrl-C leaves it alone.")
    @workdir_option
    @json_option
    def runs_command(run: str | None, watch: bool, workdir: Path, as_json: bool) -> None:
        from edgeft.runs import runs_in

        folders = [_named(run, workdir)] if run else runs_in(workdir)
        rows = [row_of(folder) for folder in folders]
        if watch:
            _watch(rows, workdir, named=run is not None, as_json=as_json)
        elif as_json:
            print_json(rows)
        elif rows:
            show_verdict(table(("run", "state", "score", "size", "verdict", "path"), [_cells(row) for row in rows]))
        else:
            click.echo(f"no run in {workdir}; `edgeft run RECIPE` makes one", err=True)

    return runs_command


def _named(run: str, workdir: Path) -> Path:
    """The folder of a run by its name or path. Raises UsageError."""
    from edgeft.errors import UsageError
    from edgeft.runs import is_run, runs_there_are

    found = next((path for path in (workdir / run, Path(run)) if is_run(path)), None)
    if found is None:
        raise UsageError(f"{run}: no run of that name in {workdir}{runs_there_are(workdir / run)}")
    return found


def row_of(run: Path) -> dict[str, Any]:
    """What is known of a run, as plain data: `state`, `stage` (the one being made, or the one it ended at), `n_stages`
    and `n_done`, `score` and its `metric`, `size_bytes`, `passed`, `judges_accuracy`, `message` and `path`."""
    from edgeft.status import DONE, RUNNING, TO_DO, read_status

    status = read_status(run)
    ahead = {row["stage"] for row in (status["stages"] if status else ()) if row["state"] in (RUNNING, TO_DO)}
    bench = {} if "bench" in ahead else _json(run / "bench" / "bench.json")  # what lies there is of an earlier run
    verdict = {} if "gate" in ahead else _json(run / "gate" / "verdict.json")
    scores = bench.get("accuracy", {}).get("scores") or [{}]
    stages = status["stages"] if status else []
    at = next((row["stage"] for row in stages if row["state"] in (RUNNING, TO_DO)), None)
    return {
        "run": run.name,
        "state": status["state"] if status else DONE if (run / "report" / "manifest.json").is_file() else "unfinished",
        "stage": at,
        "n_stages": len(stages) or None,
        "n_done": sum(row["state"] not in (RUNNING, TO_DO) for row in stages) if stages else None,
        "metric": scores[0].get("metric"),
        "score": scores[0].get("value"),
        "size_bytes": bench.get("latency", {}).get("summary", {}).get("size_bytes"),
        "passed": verdict.get("passed"),
        "judges_accuracy": verdict.get("judges_accuracy", True) if verdict else None,
        "message": status["message"] if status else "",
        "path": str(run),
    }


def _json(path: Path) -> dict[str, Any]:
    """An object a stage left; empty where there is none or it cannot be read: this is a look from outside."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    score = "-" if row["score"] is None else f"{row['score']:.3f} {row['metric']}"
    n_bytes = "-" if row["size_bytes"] is None else size(row["size_bytes"])
    return (row["run"], _state(row), score, n_bytes, verdict_word(row), row["path"])


def _state(row: Mapping[str, Any]) -> str:
    if row["stage"] is None or row["state"] == "done":
        return str(row["state"])
    where = f"stage {row['n_done'] + 1} of {row['n_stages']}: {row['stage']}"
    return f"{row['state']}, {where}" if row["state"] == "running" else f"{row['state']} at {row['stage']}"


def verdict_word(row: Mapping[str, Any]) -> str:
    """`PASS`, `FAIL`, `PASS, no accuracy budget`, or `-` where nothing was judged."""
    if row["passed"] is None:
        return "-"
    if not row["passed"]:
        return "FAIL"
    return "PASS" if row["judges_accuracy"] else "PASS, no accuracy budget"


def _watch(rows: list[dict[str, Any]], workdir: Path, *, named: bool, as_json: bool) -> None:
    from edgeft.status import DONE, RUNNING

    running = [row for row in rows if row["state"] == RUNNING]
    if not running and not named:
        click.echo(f"no run is running in {workdir}; `edgeft runs` lists those there are", err=True)
        return
    run = Path((running or rows)[0]["path"])
    if len(running) > 1:
        others = ", ".join(row["run"] for row in running[1:])
        click.echo(f"watching {run.name}; running as well: {others} (edgeft runs NAME --watch)", err=True)
    try:
        for line, content in _states(run, every_s=POLL_S if _in_place(as_json) else PLAIN_INTERVAL_S):
            _show(line, content, as_json)
    except KeyboardInterrupt:
        click.echo("\nleft; the run goes on", err=True)
        return
    last = row_of(run)
    if as_json:
        click.echo(json.dumps(last))
    else:
        show_verdict(("\n" if _in_place(as_json) else "") + "  ".join(_cells(last)))
        if last["message"]:
            click.echo(last["message"], err=True)
    if last["state"] != DONE:
        click.get_current_context().exit(EXIT_UNFINISHED)
    if last["passed"] is False:
        click.get_current_context().exit(EXIT_FAILED)


def _in_place(as_json: bool) -> bool:
    return sys.stdout.isatty() and not as_json


def _show(line: str, content: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(content))
    elif _in_place(as_json):
        width = shutil.get_terminal_size().columns - 1
        click.echo(f"\r\x1b[2K{line[:width]}", nl=False)
    else:
        click.echo(line)
    sys.stdout.flush()


def _states(run: Path, every_s: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """A line and the same as data, whenever the stage changes and every so often, while the run goes on."""
    from edgeft.status import RUNNING, read_status, seconds_left

    said_s, said_stage, predicted = 0.0, "", None
    while (status := read_status(run)) is not None and status["state"] == RUNNING:
        predicted = predicted_seconds(status, run) if predicted is None else predicted
        row = row_of(run)
        if row["stage"] != said_stage or time.monotonic() - said_s >= every_s:
            said_s, said_stage = time.monotonic(), row["stage"]
            left = seconds_left(status, predicted, time.time())
            progress = status["progress"]
            yield watch_line(row, progress, left), {**row, "progress": progress, "seconds_left": left}
        time.sleep(POLL_S)


def watch_line(row: Mapping[str, Any], progress: Mapping[str, Any] | None, left_s: float | None) -> str:
    """`mytask: stage 2 of 9: train, whole run 4:10 left, 37/144 steps, loss 1.234`."""
    from edgeft.console import time_left

    parts = [f"{row['run']}: stage {row['n_done'] + 1} of {row['n_stages']}: {row['stage']}"]
    if left_s is not None:
        parts.append(f"whole run {time_left(0, max(left_s, 0.0), 1.0)} left")
    if progress:
        label = "" if progress["label"] == row["stage"] else f"{progress['label']} "
        parts.append(f"{label}{progress['done']}/{progress['total']} {progress['unit']}")
        if progress["note"]:
            parts.append(progress["note"])
    return ", ".join(parts)


def predicted_seconds(status: Mapping[str, Any], run: Path) -> dict[str, float]:
    """What the dry run predicts for each stage of this run, on the reference machine: its pace says how fast this one
    is. Empty where the recipe cannot be read any more."""
    from dataclasses import replace

    from edgeft.cli._options import load_recipe
    from edgeft.errors import EdgeftError
    from edgeft.pipeline import inspect
    from edgeft.preflight import estimate
    from edgeft.status import UP_TO_DATE
    from edgeft.store import Store
    from edgeft.torch_dtype import settled

    made = {row["stage"] for row in status["stages"] if row["state"] != UP_TO_DATE}
    try:
        recipe, _ = settled(load_recipe(Path(status["recipe_file"]), tuple(status["overrides"])))
        states = inspect(recipe, Store(run.parent), status["stages"][-1]["stage"])
        anew = made - {"data"}  # whose artifact has the tokens to count
        needed = [replace(each, artifact=None) if each.planned.stage in anew else each for each in states]
        costs = estimate(recipe, needed)
    except (EdgeftError, OSError, KeyError):
        return {}
    return {stage: cost.minutes * 60 for stage, cost in costs.items() if cost.minutes is not None}
