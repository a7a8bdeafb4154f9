"""The pipeline with scripted stages: what is made, what is skipped, and what any interruption leaves behind."""

import errno
import json
import multiprocessing
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edgeft.artifact import Artifact
from edgeft.console import Log, silent_log
from edgeft.errors import ArtifactError, DataError, GateFailed, MissingExtra, ModelError, ParityFailed, UsageError
from edgeft.pipeline import Result, StageFunction, duration, inspect, run
from edgeft.plan import SPINE, STAGES
from edgeft.recipe import Recipe
from edgeft.recipe_reader import read_recipe
from edgeft.store import Store

RECIPE = """\
name: demo
model: {base: base}
data: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}
train: {learning_rate: 1e-3}
gate: {exact_match: ">= 0.5"}
"""
PREPARED = RECIPE.replace("test: test.jsonl", "test: test.jsonl, prepare: {script: make.py, inputs: [raw]}")
ALL = [step.stage for step in SPINE]


@dataclass
class Script:
    """Stages that write what they read; `trouble` maps a stage to what happens in it."""

    calls: list[str] = field(default_factory=list)
    trouble: dict[str, Callable[[Path], Any]] = field(default_factory=dict)

    def functions(self) -> dict[str, StageFunction]:
        return {stage: self.function(stage) for stage in STAGES}

    def function(self, stage: str) -> StageFunction:
        def scripted(recipe: Recipe, inputs: dict[str, Artifact], out: Path, log: Log) -> dict[str, float]:
            self.calls.append(stage)
            seen = {name: artifact.files["result.json"].sha256 for name, artifact in inputs.items()}
            found = sorted(path.name for path in out.iterdir())
            (out / "checkpoint").mkdir(exist_ok=True)
            (out / "checkpoint" / "state").write_text("half-way")
            (out / "result.json").write_text(json.dumps([stage, recipe.seed, seen]))
            metrics = self.trouble[stage](out) if stage in self.trouble else None
            return metrics or {"found": float(len(found))}

        return scripted


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "base").mkdir(parents=True)
    (folder / "base" / "config.json").write_text("{}")
    (folder / "raw").mkdir()
    (folder / "raw" / "a.txt").write_text("raw")
    for name in ("train.jsonl", "validation.jsonl", "test.jsonl", "make.py"):
        (folder / name).write_text(name)
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "prepared.yaml").write_text(PREPARED)
    return folder


def go(
    here: Path, script: Script, *overrides: str, recipe: str = "recipe.yaml", workdir: str = "runs", **options: Any
) -> Result:
    loaded = read_recipe(here / recipe, overrides)
    store = Store(here.parent / workdir)
    return run(loaded, store, options.pop("log", silent_log()), stages=script.functions(), **options)


def raiser(error: BaseException) -> Callable[[Path], Any]:
    def trouble(out: Path) -> None:
        raise error

    return trouble


def test_every_stage_once_with_its_inputs(here: Path) -> None:
    script = Script()
    result = go(here, script)
    assert script.calls == ALL == list(result.made)
    for step in SPINE:
        _, seed, seen = json.loads(result.artifacts[step.stage].file("result.json").read_text())
        assert (seed, set(seen)) == (42, set(step.reads))
        assert (here.parent / "runs" / "demo" / step.stage / "result.json").exists()
        assert set(result.artifacts[step.stage].files) == {"result.json"}  # no checkpoint in it
    again = go(here, script)
    assert (again.made, script.calls) == ((), ALL)
    assert again.artifacts == result.artifacts


FROM_TRAIN = ALL[1:]


@pytest.mark.parametrize(
    ("override", "remade"),
    [
        ("seed=7", ALL),
        ("data.max_length=99", ALL),
        ("model.chat_template=chatml", ALL),
        ("train.learning_rate=2e-3", FROM_TRAIN),
        ("train.lora.r=4", FROM_TRAIN),
        ("train.stages=[{objective: sft}]", ALL),  # which files are prepared follows from the objectives
        ("merge.dtype=bfloat16", ALL[2:]),
        ("export.gguf=[{ftype: F16}]", ["export", "parity", "bench", "gate", "report"]),
        ("parity.prompts=3", ["parity", "gate", "report"]),
        ("bench.n_ctx=512", ["parity", "baseline", "bench", "gate", "report"]),
        ("gate.exact_match=>= 0.7", ["gate", "report"]),
        ("gate={}", ["gate", "report"]),
    ],
)
def test_a_change_remakes_what_reads_it(here: Path, override: str, remade: list[str]) -> None:
    go(here, Script())
    script = Script()
    go(here, script, override)
    assert script.calls == remade
    back = Script()
    go(here, back)  # the old artifacts are still there
    assert back.calls == []


@pytest.mark.parametrize(
    ("recipe", "changed", "remade"),
    [
        ("recipe.yaml", "train.jsonl", ALL),
        ("recipe.yaml", "test.jsonl", ALL),
        ("recipe.yaml", "base/config.json", ALL),
        ("recipe.yaml", "base/new.json", ALL),
        ("recipe.yaml", "make.py", []),
        ("prepared.yaml", "make.py", ALL),
        ("prepared.yaml", "raw/a.txt", ALL),
        ("prepared.yaml", "raw/b.txt", ALL),
        ("prepared.yaml", "train.jsonl", []),
    ],
)
def test_a_changed_input_file_remakes(here: Path, recipe: str, changed: str, remade: list[str]) -> None:
    go(here, Script(), recipe=recipe)
    (here / changed).write_text("other content")
    script = Script()
    go(here, script, recipe=recipe)
    assert script.calls == remade


def test_data_that_moves_is_the_same_data(here: Path) -> None:
    go(here, Script())
    moved = here.rename(here.parent / "moved")
    script = Script()
    go(moved, script)
    assert script.calls == []


def test_a_crash_keeps_what_was_made_and_what_can_resume(here: Path) -> None:
    script = Script(trouble={"train": raiser(ZeroDivisionError("a bug"))})
    with pytest.raises(ZeroDivisionError):
        go(here, script)
    script = Script(trouble={"merge": raiser(KeyboardInterrupt())})
    with pytest.raises(KeyboardInterrupt):
        go(here, script)
    assert script.calls == ["train", "merge"]
    left = [path.name for path in (here.parent / "runs" / "store").iterdir() if path.suffix == ".work"]
    assert left == []
    result = go(here, Script())
    assert result.made == tuple(ALL[2:])
    assert result.artifacts["train"].metrics["found"] == 2  # train found its checkpoint and its result
    assert result.artifacts["merge"].metrics["found"] == 0


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "x"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_leaves_nothing_done(here: Path, error: Exception) -> None:
    with pytest.raises(ArtifactError, match="the disk is full; free some space"):
        go(here, Script(trouble={"export": raiser(error)}))
    script = Script()
    go(here, script)
    assert script.calls == ALL[3:]


def test_a_small_disk_that_grows(here: Path) -> None:
    """A real file system of half a megabyte: the run stops with advice, and goes on when there is room."""
    disk = here.parent / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")

    def trouble(out: Path) -> None:
        (out / "model.bin").write_bytes(b"x" * 700_000)

    try:
        script = Script(trouble={"merge": trouble})
        with pytest.raises(ArtifactError, match="the disk is full"):
            go(here, script, workdir="disk")
        assert sorted(path.name for path in (disk / "demo").iterdir()) == ["data", "train"]
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        assert go(here, script, workdir="disk").made == tuple(ALL[2:])
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_work_folder_that_is_a_file(here: Path) -> None:
    (here.parent / "runs").write_text("")
    with pytest.raises(ArtifactError, match="a part of the path is a file, not a folder; write to another place"):
        go(here, Script())


def test_other_errors_of_the_system_stay_tracebacks(here: Path) -> None:
    with pytest.raises(FileNotFoundError):
        go(here, Script(trouble={"data": lambda out: (out / "missing").read_text()}))


@pytest.mark.parametrize(
    ("stage", "module", "said"),
    [
        ("train", "peft.tuners", 'the Python package peft is not installed; pip install "edgeft[train]"'),
        ("export", "gguf", 'pip install "edgeft[train,gguf]"'),
        ("parity", "llama_cpp", 'pip install "edgeft[train,gguf]"'),
    ],
)
def test_a_missing_package_names_the_extra(here: Path, stage: str, module: str, said: str) -> None:
    error = ModuleNotFoundError(f"No module named {module!r}", name=module)
    with pytest.raises(MissingExtra) as caught:
        go(here, Script(trouble={stage: raiser(error)}))
    assert said in str(caught.value)


def test_a_typo_of_ours_is_no_missing_package(here: Path) -> None:
    error = ModuleNotFoundError("No module named 'edgeft.trainig'", name="edgeft.trainig")
    with pytest.raises(ModuleNotFoundError, match="trainig"):
        go(here, Script(trouble={"train": raiser(error)}))


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (raiser(GateFailed("exact_match 0.4 < 0.5")), "exact_match 0.4 < 0.5"),
        (lambda out: {"passed": 0.0, "failed": 2.0, "budgets": 3.0}, "gate: 2 of 3 not met; see "),
    ],
)
def test_a_failed_gate_is_reported_and_stays_failed(here: Path, trouble: Any, said: str) -> None:
    script = Script(trouble={"gate": trouble})
    result = go(here, script)
    assert script.calls == ALL
    assert said in str(result.failure)
    again = go(here, script)
    assert again.made == ()
    assert str(again.failure) == str(result.failure)


def test_failed_parity_stops_the_run(here: Path) -> None:
    script = Script(trouble={"parity": raiser(ParityFailed("q8_0 moved"))})
    for calls in (ALL[:5], ALL[:5]):
        with pytest.raises(ParityFailed, match="q8_0 moved"):
            go(here, script)
        assert script.calls == calls


def test_damage_is_repaired_alone(here: Path) -> None:
    result = go(here, Script())
    result.artifacts["merge"].file("result.json").write_text("damaged")
    script = Script()
    repaired = go(here, script)
    assert script.calls == ["merge"]
    assert repaired.artifacts["merge"].files == result.artifacts["merge"].files


def test_inspection_says_why_and_touches_nothing(here: Path) -> None:
    store = Store(here.parent / "runs")

    def reasons(*overrides: str) -> dict[str, tuple[str, ...]]:
        states = inspect(read_recipe(here / "recipe.yaml", overrides), store)
        return {state.planned.stage: state.reasons for state in states if state.artifact is None}

    assert set(reasons().values()) == {("new",)}
    assert not store.folder.exists()
    result = go(here, Script())
    assert reasons() == {}
    assert reasons("train.learning_rate=2e-3", "train.lora.r=8")["train"] == (
        "train.learning_rate: 0.001 → 0.002",
        "train.lora.r: 16 → 8",
    )
    assert reasons("train.lora.r=8")["merge"] == ("train.lora.r: 16 → 8", "train is made again")
    (here / "train.jsonl").write_text("more")
    assert reasons()["data"] == ("data.train changed",)
    (here / "train.jsonl").write_text("train.jsonl")
    result.artifacts["bench"].file("result.json").unlink()
    assert reasons() == {"bench": ("damaged: result.json cannot be read: No such file or directory",)}
    shutil.rmtree(result.artifacts["bench"].path)
    assert reasons() == {"bench": ("new",)}


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        ("data", ["data"]),
        ("export", ["data", "train", "merge", "export"]),
        ("bench", ["data", "train", "merge", "export", "bench"]),
        ("baseline", ["data", "train", "merge", "baseline"]),
        ("gate", ALL[:-1]),
    ],
)
def test_until(here: Path, until: str, expected: list[str]) -> None:
    script = Script()
    go(here, script, until=until)
    assert script.calls == expected


def test_force(here: Path) -> None:
    go(here, Script())
    script = Script()
    go(here, script, force=("export",))
    assert script.calls == ["export", "parity", "bench", "gate", "report"]
    script = Script()
    go(here, script, force=("export",), until="export")
    assert script.calls == ["export"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"until": "trian"}, "recipe demo has no stage trian; its stages: data, train"),
        ({"until": "pretrain"}, "recipe demo has no stage pretrain"),
        ({"force": ("bench",), "until": "data"}, "--force bench: not a stage of this run"),
    ],
)
def test_unknown_stages(here: Path, options: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        go(here, Script(), **options)


@pytest.mark.parametrize(
    ("missing", "recipe", "error", "said"),
    [
        ("train.jsonl", "recipe.yaml", DataError, "data.train: no such file"),
        ("base", "recipe.yaml", ModelError, "model.base: "),
        ("make.py", "prepared.yaml", DataError, "data.prepare.script: no such file"),
        ("raw", "prepared.yaml", DataError, r"data.prepare.inputs.0: no such file"),
    ],
)
def test_missing_inputs(here: Path, missing: str, recipe: str, error: Any, said: str) -> None:
    (here / missing).rename(here / "elsewhere")
    with pytest.raises(error, match=said):
        go(here, Script(), recipe=recipe)


def test_a_pretraining_recipe_has_one_stage(here: Path) -> None:
    (here / "base.yaml").write_text("name: base\npretrain: {prepare: {script: make.py, inputs: [raw]}}\n")
    script = Script()
    go(here, script, recipe="base.yaml")
    (here / "raw" / "a.txt").write_text("more")
    go(here, script, recipe="base.yaml")
    go(here, script, "pretrain.learning_rate=1e-3", recipe="base.yaml")
    assert script.calls == ["pretrain"] * 3


def slow_run(here: Path, calls: Path, barrier: Any) -> None:
    def trouble(out: Path) -> None:
        with calls.open("a") as file:
            file.write(out.name.split("-")[0] + "\n")

    script = Script(trouble=dict.fromkeys(ALL, trouble))
    barrier.wait()
    go(here, script)


def test_two_runs_at_once_make_everything_once(here: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    calls, barrier = here / "calls", spawn.Barrier(2)
    runs = [spawn.Process(target=slow_run, args=(here, calls, barrier)) for _ in range(2)]
    for process in runs:
        process.start()
    for process in runs:
        process.join()
        assert process.exitcode == 0
    assert calls.read_text().split() == ALL
    undisturbed = go(here, Script(), workdir="other")
    together = go(here, Script())
    assert {name: a.files for name, a in together.artifacts.items()} == {
        name: a.files for name, a in undisturbed.artifacts.items()
    }


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (61, "1 min 1 s"), (3700, "1 h 1 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
