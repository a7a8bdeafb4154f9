"""`edgeft run RECIPE`: the whole road, or its dry run."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeft.cli._options import json_option, load_recipe, set_option, workdir_option
from edgeft.cli._output import print_json, show_verdict, size, table

if TYPE_CHECKING:
    from edgeft.artifact import Artifact
    from edgeft.machine.compute_type import ComputeType
    from edgeft.pipeline import Result, State
    from edgeft.preflight import Estimate
    from edgeft.recipe import Recipe


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft run`."""

    @click.command(name, help=text)
    @click.argument("recipe", type=click.Path(path_type=Path))
    @click.option("--dry-run", is_flag=True, help="Show what would be made, and its cost.")
    @click.option("--quick", "in_short", is_flag=True, help="Little of each: does the road end in a working file?")
    @click.option("--until", metavar="STAGE", help="Stop after this stage.")
    @click.option("--force", metavar="STAGE", multiple=True, help="Make this stage and what follows again.")
    @set_option
    @workdir_option
    @json_option
    def run_command(recipe: Path, dry_run: bool, **options: Any) -> None:
        if dry_run:
            show_dry_run(recipe, **options)
        else:
            run_recipe(recipe, **options)

    return run_command


def run_recipe(
    path: Path,
    *,
    until: str | None = None,
    force: tuple[str, ...] = (),
    overrides: tuple[str, ...] = (),
    in_short: bool = False,
    workdir: Path,
    as_json: bool = False,
) -> None:
    """Run the recipe at `path` and print what came out. Raises GateFailed after printing."""
    from edgeft.console import terminal_log
    from edgeft.pipeline import assist, inspect, run
    from edgeft.preflight.answers import foresee_cut_answers
    from edgeft.preflight.ready import check_ready
    from edgeft.preflight.slow_type import warn_of_slow_type
    from edgeft.quick import SENTENCE
    from edgeft.quiet import quiet_libraries
    from edgeft.status import STATUS, RunStatus
    from edgeft.store import Store

    recipe, log = _wanted(path, overrides, in_short), terminal_log()
    if in_short:
        log.say(SENTENCE)
    quiet_libraries()
    if os.environ.get("RANK", "0") != "0":  # torchrun's word for the workers beside the first
        assist(recipe, Store(workdir), until=until, force=force)
        return
    store = Store(workdir)
    check_ready(recipe, inspect(recipe, store, until, force), workdir)
    warn_of_slow_type(recipe, lambda: inspect(recipe, store, until, force), log)

    class Following(RunStatus):
        def ends(self, artifact: "Artifact") -> None:
            super().ends(artifact)
            if artifact.stage == "data":
                foresee_cut_answers(recipe, artifact, log.say)

    source = {"recipe_file": str(path.absolute()), "overrides": list(overrides), "quick": in_short}
    status = Following(workdir / recipe.name / STATUS, recipe.name, source)
    with status.recorded():
        result = run(recipe, store, status.log(log), until=until, force=force, watch=status)
    if not result.made:
        log.say("up to date")
    if as_json:
        print_json(_result_json(recipe, workdir, result))
    else:
        _print_result(recipe, workdir, result)
    if result.failure is not None:
        raise result.failure


def show_dry_run(
    path: Path,
    *,
    until: str | None,
    force: tuple[str, ...],
    overrides: tuple[str, ...],
    in_short: bool,
    workdir: Path,
    as_json: bool,
) -> None:
    """Print the plan, with disk, memory and minutes of what is not up to date."""
    from edgeft.console import terminal_log
    from edgeft.pipeline import inspect
    from edgeft.preflight import estimate, speed_of_this_machine
    from edgeft.preflight.answers import foresee_cut_answers
    from edgeft.preflight.slow_type import warn_of_slow_type
    from edgeft.store import Store
    from edgeft.torch_dtype import settled

    given, log = _wanted(path, overrides, in_short), terminal_log()
    recipe, compute_type = settled(given, log)
    states = inspect(recipe, Store(workdir), until, force)
    for state in states:
        if state.planned.stage == "data" and state.artifact is not None:
            foresee_cut_answers(recipe, state.artifact, log.say)
    estimates = estimate(recipe, states, speed_of_this_machine(log))
    warn_of_slow_type(given, lambda: states, log)
    if as_json:
        print_json([_state_json(state, estimates.get(state.planned.stage), compute_type) for state in states])
        return
    rows = [_state_row(state, estimates.get(state.planned.stage)) for state in states]
    click.echo(table(("stage", "disk", "memory", "minutes", "state"), rows))
    click.echo(_totals(list(estimates.values())))
    if compute_type is not None:
        click.echo(f"torch_dtype: auto is {compute_type}")


def _wanted(path: Path, overrides: tuple[str, ...], in_short: bool) -> "Recipe":
    from edgeft.quick import quick

    recipe = load_recipe(path, overrides)
    return quick(recipe) if in_short else recipe


def _state_row(state: "State", cost: "Estimate | None") -> tuple[str, ...]:
    what = "up to date" if state.artifact else f"to do: {'; '.join(state.reasons)}"
    if cost is None:
        return (state.planned.stage, "-", "-", "-", what)
    minutes = "unknown" if cost.minutes is None else f"{cost.minutes:.1f}"
    disk, memory = ("unknown" if n is None else size(n) for n in (cost.disk_bytes, cost.ram_bytes))
    return (state.planned.stage, disk, memory, minutes, what)


def _totals(costs: "list[Estimate]") -> str:
    if not costs:
        return "all up to date"
    disk = sum(cost.disk_bytes or 0 for cost in costs)
    memory = max(cost.ram_bytes or 0 for cost in costs)
    minutes = sum(cost.minutes or 0 for cost in costs)
    unknown = any(None in (cost.disk_bytes, cost.ram_bytes, cost.minutes) for cost in costs)
    about = "at least" if unknown else "about"
    return f"{about} {minutes:.1f} minutes, {size(disk)} on disk, {size(memory)} of memory (rough estimates)"


def _state_json(state: "State", cost: "Estimate | None", compute_type: "ComputeType | None") -> dict[str, Any]:
    """`torch_dtype_reason` is null where the recipe names the type itself."""
    trains = state.planned.torch_dtype is not None
    return {
        "stage": state.planned.stage,
        "key": state.planned.key,
        "up_to_date": state.artifact is not None,
        "reasons": list(state.reasons),
        "disk_bytes": cost.disk_bytes if cost else None,
        "ram_bytes": cost.ram_bytes if cost else None,
        "minutes": cost.minutes if cost else None,
        "torch_dtype": state.planned.torch_dtype,
        "torch_dtype_reason": compute_type.reason if compute_type and trains else None,
    }


def _result_json(recipe: "Recipe", workdir: Path, result: "Result") -> dict[str, Any]:
    return {
        "recipe": recipe.name,
        "folder": str(workdir / recipe.name),
        "passed": result.failure is None,
        "stages": {
            stage: {
                "path": str(workdir / recipe.name / stage),
                "key": artifact.key,
                "made": stage in result.made,
                "metrics": artifact.metrics,
                "files": sorted(artifact.files),
            }
            for stage, artifact in result.artifacts.items()
        },
    }


def _print_result(recipe: "Recipe", workdir: Path, result: "Result") -> None:
    """What the last stage found, then where things are."""
    stage, last = list(result.artifacts.items())[-1]
    show_verdict(_summary(stage, last) + "\n")
    click.echo(f"{stage}: {workdir / recipe.name / stage}")
    if shipped := _shipped(recipe, result.artifacts.get("export")):
        click.echo(f"file:   {workdir / recipe.name / 'export' / shipped}")


def _summary(stage: str, artifact: "Artifact") -> str:
    if stage == "report":
        return artifact.file("report.txt").read_text(encoding="utf-8")
    if stage == "gate":
        from edgeft.report.terminal import verdict_text

        return verdict_text(json.loads(artifact.file("verdict.json").read_bytes()))
    if stage == "parity":
        from edgeft.parity.table import render_table

        return render_table(json.loads(artifact.file("parity.json").read_bytes()))
    return table((stage, "value"), [(name, _number(value)) for name, value in artifact.metrics.items()])


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.6g}"


def _shipped(recipe: "Recipe", export: "Artifact | None") -> str | None:
    """Name of the file that ships."""
    names = (f"{recipe.name}-{recipe.shipped}.gguf", f"{recipe.shipped}/model.onnx")
    return next((name for name in names if export is not None and name in export.files), None)
