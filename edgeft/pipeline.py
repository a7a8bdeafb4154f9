"""Run a recipe: skip what is up to date, make the rest, leave a state from which the next run goes on.

The one door to the heavy modules: `edgeft.stages.<stage>` is imported by name, and only to be run.
"""

import importlib
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from edgeft.artifact import Artifact, write_atomic, write_refused
from edgeft.console import Log, silent_log
from edgeft.errors import EdgeftError, GateFailed, ParityFailed, UsageError
from edgeft.extras import extra_needed
from edgeft.interrupts import Interrupted
from edgeft.plan import Planned, differences, plan
from edgeft.quiet import uncompiled_imports
from edgeft.recipe import Recipe
from edgeft.status import Unwatched, Watcher
from edgeft.store import Store
from edgeft.torch_dtype import settled

StageFunction = Callable[[Recipe, dict[str, Artifact], Path, Log], dict[str, float]]

FAILURE = "failure.txt"
SLOW_IMPORTS = ("torch", "transformers")  # seconds each, the first time
FULL_DISK_BYTES = 1 << 20
POLL_S = 0.2


@dataclass(frozen=True)
class State:
    """Where a step stands: `artifact` when it is up to date, else `reasons` why it must be made."""

    planned: Planned
    artifact: Artifact | None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """What a run left: artifacts by stage, which of them it made, and the gate's failure if there is one."""

    artifacts: dict[str, Artifact]
    made: tuple[str, ...]
    failure: GateFailed | None


def inspect(recipe: Recipe, store: Store, until: str | None = None, force: tuple[str, ...] = ()) -> list[State]:
    """The plan and where each step stands, changing nothing on disk but the memory of hashes.

    A stage in `force` counts as not up to date, and so does all that reads it. Raises as `plan` does.
    """
    recipe, _ = settled(recipe)
    steps = plan(recipe, store.hashes, until)
    unknown = sorted(set(force) - {planned.stage for planned in steps})
    if unknown:
        known = ", ".join(planned.stage for planned in steps)
        raise UsageError(f"--force {unknown[0]}: not a stage of this run; its stages: {known}")
    states: list[State] = []
    forced = set(force)
    for planned in steps:
        if forced & set(planned.step.reads):
            forced.add(planned.stage)
        found = store.check(planned.stage, planned.key)
        if planned.stage in forced:
            states.append(State(planned, None, ("forced",)))
        elif isinstance(found, Artifact):
            states.append(State(planned, found))
        else:
            damage = (f"damaged: {found}",) if found else ()
            states.append(State(planned, None, damage or _reasons(recipe, planned, store)))
    store.hashes.save()
    return states


def run(
    recipe: Recipe,
    store: Store,
    log: Log,
    *,
    until: str | None = None,
    force: tuple[str, ...] = (),
    stages: Mapping[str, StageFunction] | None = None,
    watch: Watcher | None = None,
) -> Result:
    """Make every stage of the recipe that is not up to date, up to and including `until`.

    `stages` maps names to functions; by default `edgeft.stages` is imported, module by module, when needed. `watch`
    is told of every stage, and sees every artifact before the next stage is made.
    A failed gate lets the stages behind it run and comes back in the result. Raises ParityFailed when an
    exported form is not the trained model, MissingExtra when a stage lacks a package, and what stages raise.
    """
    recipe, compute_type = settled(recipe, log)
    states = inspect(recipe, store, until, force)
    _show(states, log)
    if compute_type and any(state.artifact is None and state.planned.torch_dtype for state in states):
        log.say(f"torch_dtype: auto is {compute_type}")
    watch = watch or Unwatched()
    watch.planned([(state.planned.stage, state.artifact is not None) for state in states])
    artifacts: dict[str, Artifact] = {}
    made: list[str] = []
    failure: GateFailed | None = None
    for state in states:
        planned = state.planned
        artifact = state.artifact
        if artifact is None:
            inputs = {stage: artifacts[stage] for stage in planned.step.reads}
            watch.begins(planned.stage)
            try:
                artifact, is_new = _make(recipe, state, inputs, store, log, stages)
            except KeyboardInterrupt as error:
                raise _interrupted(error, planned.stage, list(artifacts)) from error
            if is_new:
                made.append(planned.stage)
        artifacts[planned.stage] = artifact
        watch.ends(artifact)
        failed = _failure(artifact, store.link(recipe.name, artifact))
        if failed and planned.step.stops:
            raise failed
        failure = failure or failed
    return Result(artifacts, tuple(made), failure)


def assist(recipe: Recipe, store: Store, *, until: str | None = None, force: tuple[str, ...] = ()) -> None:
    """Take part in what another process's `run` with the same arguments trains, as a worker beside it.

    Waits for the artifacts training reads, trains with the others, and leaves every file to them. Whoever
    started the workers (torchrun) ends this one when another fails. Returns at once where there is nothing to
    train. Raises UsageError for a recipe without a stage that workers share.
    """
    recipe, _ = settled(recipe)
    steps = plan(recipe, store.hashes, until)
    shared = next((planned for planned in steps if planned.step.distributed), None)
    if shared is None:
        raise UsageError(
            f"recipe {recipe.name}: none of its stages is made by several workers; start it without torchrun"
        )
    forced = {*shared.step.reads, shared.stage} & set(force)
    if not forced and isinstance(store.check(shared.stage, shared.key), Artifact):
        return
    inputs = {planned.stage: _awaited(planned, store) for planned in steps if planned.stage in shared.step.reads}
    _call(recipe, shared, inputs, store.work_path(shared.stage, shared.key), silent_log(), None)


def _awaited(planned: Planned, store: Store) -> Artifact:
    """The artifact of a step another process is making."""
    while not isinstance(found := store.check(planned.stage, planned.key), Artifact):
        time.sleep(POLL_S)
    return found


def _make(
    recipe: Recipe,
    state: State,
    inputs: dict[str, Artifact],
    store: Store,
    log: Log,
    stages: Mapping[str, StageFunction] | None,
) -> tuple[Artifact, bool]:
    """The artifact of a step that was not up to date, and whether this process made it."""
    planned = state.planned
    stage, key = planned.stage, planned.key
    with store.lock(stage, key, log):
        if state.reasons == ("forced",):
            store.discard(stage, key)
        found = store.find(stage, key, log) or store.adopt(stage, key)
        if found is not None:
            log.say(f"{stage}: made by another run meanwhile")
            return found, False
        out = store.begin(stage, key, resumable=planned.step.resumable)
        log.say(f"{stage}: starting")
        began = time.monotonic()
        try:
            metrics = _call(recipe, planned, inputs, out, log, stages)
        except BaseException:
            if not planned.step.resumable:
                shutil.rmtree(out, ignore_errors=True)
            raise
        artifact = store.finish(stage, key, metrics, planned.made_from)
        log.say(f"{stage}: done in {duration(time.monotonic() - began)}")
        return artifact, True


def _call(
    recipe: Recipe,
    planned: Planned,
    inputs: dict[str, Artifact],
    out: Path,
    log: Log,
    stages: Mapping[str, StageFunction] | None,
) -> dict[str, float]:
    """Run the stage's function; what it raises becomes something a person can act on."""
    try:
        with extra_needed(planned.step.extra):
            if stages is None and (slow := _slow_imports(planned)):
                log.say(f"{planned.stage}: loading {', '.join(slow)}")
            function = _import_stage(planned) if stages is None else stages[planned.stage]
            return function(recipe, inputs, out, log)
    except GateFailed as error:
        write_atomic(out / FAILURE, f"{error}\n")
        return {"passed": 0.0}
    except EdgeftError:
        raise
    except Exception as error:
        refused = _refused_by_disk(error, out)
        if refused is error:
            raise
        raise refused from error


def _interrupted(error: KeyboardInterrupt, stage: str, done: list[str]) -> Interrupted:
    """The interrupt of a run at work on `stage`, with what the next run finds."""
    number, kept = (error.number, error.kept) if isinstance(error, Interrupted) else (signal.SIGINT, ())
    stages = f"stages {', '.join(done)}" if len(done) > 1 else f"stage {done[0]}" if done else "no stage was done yet"
    return Interrupted(number, (stages, *(kept or (f"{stage}: begins again",))))


def _slow_imports(planned: Planned) -> list[str]:
    """What the stage needs, takes seconds to import, and is not there yet."""
    return [name for name in SLOW_IMPORTS if name in planned.step.packages and name not in sys.modules]


def _import_stage(planned: Planned) -> StageFunction:
    """The function of a stage's module, imported now."""
    with uncompiled_imports() if "train" in planned.step.extra else nullcontext():
        function: StageFunction = importlib.import_module(f"edgeft.stages.{planned.step.module or planned.stage}").run
    return function


def _refused_by_disk(error: Exception, out: Path) -> Exception:
    """An ArtifactError when the disk is why `error` happened, else `error`.

    Libraries that write with native code (safetensors, torch, llama.cpp) report a full disk in words of
    their own or not at all, so a disk without space left counts as the reason too.
    """
    if isinstance(error, OSError):
        return write_refused(error, out)
    said_so = "No space left on device" in str(error) or "os error 28" in str(error)
    if said_so or shutil.disk_usage(out).free < FULL_DISK_BYTES:
        return write_refused(OSError(28, "No space left on device", str(out)), out)
    return error


def _failure(artifact: Artifact, link: Path) -> GateFailed | None:
    """The failure a stage's artifact stands for, made in this run or before; `link` is where people find it.

    A check fails by raising GateFailed, or by returning the metric `passed` as 0 with all it measured.
    """
    if artifact.metrics.get("passed", 1.0):
        return None
    kind = ParityFailed if artifact.stage == "parity" else GateFailed
    if FAILURE in artifact.files:
        return kind(artifact.file(FAILURE).read_text(encoding="utf-8").rstrip("\n"))
    failed, budgets = (artifact.metrics.get(name, 1.0) for name in ("failed", "budgets"))
    return kind(f"{artifact.stage}: {failed:.0f} of {budgets:.0f} not met; see {link}")


def _reasons(recipe: Recipe, planned: Planned, store: Store) -> tuple[str, ...]:
    before = store.linked(recipe.name, planned.stage)
    if before is None:
        half_done = store.work_path(planned.stage, planned.key).exists() and planned.step.resumable
        return ("half done",) if half_done else ("new",)
    return tuple(differences(before.made_from, planned.made_from)) or ("missing",)


def _show(states: list[State], log: Log) -> None:
    """The plan, one line a stage, when there is something to do."""
    if all(state.artifact for state in states):
        return
    width = max(len(state.planned.stage) for state in states)
    for state in states:
        what = "up to date" if state.artifact else f"to do ({'; '.join(state.reasons[:3])})"
        log.say(f"  {state.planned.stage:<{width}}  {what}")


def duration(seconds: float) -> str:
    """`4.2 s`, `3 min 20 s`, `1 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
