"""What a path stands for: one table for every command that takes a model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeft.artifact import write_manifest
from edgeft.bundle.contents import Extras
from edgeft.bundle.pack import pack
from edgeft.bundle.run import read_run
from edgeft.cli import main
from edgeft.errors import EdgeftError, ModelError, UsageError
from edgeft.runs import find_model, recipe_values, runs_in, trained_model
from tests.bundle.handmade import make_run

F16 = {"file": "m-F16.gguf", "format": "gguf", "ftype": "F16", "bytes": 3}
Q8 = {"file": "m-Q8_0.gguf", "format": "gguf", "ftype": "Q8_0", "bytes": 3}
INT8 = {"file": "int8/model.onnx", "format": "onnx", "dtype": "int8", "bytes": 3}


def stage(run: Path, name: str, made_from: dict[str, object] | None = None, **files: str) -> None:
    for file, content in files.items():
        path = run / name / file.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    write_manifest(run / name, name, "k" * 64, {}, made_from)


def a_run(run: Path, *entries: dict[str, object], ship: str | None = None) -> Path:
    for entry in entries:
        path = run / "export" / str(entry["file"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("abc")
    stage(run, "export", {"recipe export.ship": ship}, files_dot_json=json.dumps(entries))
    stage(run, "merge", config_dot_json="{}")
    return run


def a_bundle(run: Path, *, folder: bool) -> Path:
    bundle = run.parent.parent / ("app" if folder else "app.edgeft")
    pack(read_run(make_run(run)), bundle, Extras(), folder=folder)
    return bundle


# what lies in the folder `runs/x`, and the model that the path stands for
PLACES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a file": (lambda x: a_run(x, F16), "runs/x/export/m-F16.gguf", "runs/x/export/m-F16.gguf"),
    "the last GGUF file ships": (lambda x: a_run(x, F16, Q8), "runs/x", "runs/x/export/m-Q8_0.gguf"),
    "also before ONNX": (lambda x: a_run(x, F16, INT8), "runs/x", "runs/x/export/m-F16.gguf"),
    "or what the recipe says": (lambda x: a_run(x, F16, Q8, ship="F16"), "runs/x", "runs/x/export/m-F16.gguf"),
    "a folder ships": (lambda x: a_run(x, INT8), "runs/x", "runs/x/export/int8"),
    "the stage": (lambda x: a_run(x, F16, Q8), "runs/x/export", "runs/x/export/m-Q8_0.gguf"),
    "what was measured": (
        lambda x: (a_run(x, F16, Q8), stage(x, "bench", bench_dot_json='{"file": "m-F16.gguf", "metrics": {}}')),
        "runs/x", "runs/x/export/m-F16.gguf",
    ),
    "a model's folder": (lambda x: a_run(x, INT8), "runs/x/export/int8", "runs/x/export/int8"),
    "a bundle's folder": (lambda x: a_bundle(x, folder=True), "app", "app/model/home-Q8_0.gguf"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_a_path_stands_for_a_model(tmp_path: Path, name: str) -> None:
    make, path, model = PLACES[name]
    make(tmp_path / "runs" / "x")
    found = find_model(tmp_path / path)
    assert found.model == tmp_path / model
    assert (found.run == tmp_path / "runs" / "x") is (path == "runs/x")
    assert (found.bundle is not None) is (path == "app")


def test_a_bundle_is_unpacked_to_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFT_CACHE", str(tmp_path / "cache"))
    found = find_model(a_bundle(tmp_path / "runs" / "home", folder=False))
    assert found.model.is_relative_to(tmp_path / "cache")
    assert found.model.read_bytes() == b"GGUF weights"


# the path, the error and its words; there is the run runs/x
NONE = {
    "nothing": ("runs/y", ModelError, "runs/y: no such file; give .* there are: .*runs/x"),
    "a folder without a model": (
        "runs/empty",
        ModelError,
        "neither a model's folder, a bundle nor a run's.* there are:",
    ),
    "beside other files": ("runs/x/export/m.gguf", ModelError, r"no such file.*export has: m-F16.gguf, m-Q8_0.gguf"),
    "several": ("two", ModelError, r"one model file is needed, it has: a.gguf, b.gguf; name the file"),
    "a pointer": ("pointer.gguf", ModelError, "a Git LFS pointer"),
    "an unfinished run": ("runs/half", ModelError, "has made no model file yet; run its recipe to the end"),
    "what ships is not there": ("runs/odd", UsageError, "Q2_K: the run exported no such file, only F16"),
}


def make_places(folder: Path) -> None:
    a_run(folder / "runs" / "x", F16, Q8)
    a_run(folder / "runs" / "odd", F16, ship="Q2_K")
    stage(folder / "runs" / "half", "data", test_dot_jsonl="{}")
    for name in ("two", "runs/empty"):
        (folder / name).mkdir()
    for name in ("two/a.gguf", "two/b.gguf"):
        (folder / name).write_text("x")
    (folder / "pointer.gguf").write_text("version https://git-lfs.github.com/spec/v1\n")


@pytest.mark.parametrize("name", NONE)
def test_a_path_that_stands_for_none(tmp_path: Path, name: str) -> None:
    path, error, words = NONE[name]
    make_places(tmp_path)
    with pytest.raises(error, match=words):
        find_model(tmp_path / path)


@pytest.mark.parametrize("line", ["inspect runs/y", "bench runs/y --data d", "compare runs/y runs/x", "chat runs/y",
                                  "parity runs/x runs/y", "parity runs/y", "report runs/y", 
                                  "pack runs/y -o b", "gate runs/y --budget 'size_bytes <= 1'"])  # fmt: skip
def test_every_command_lists_the_runs_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    a_run(tmp_path / "runs" / "x", F16)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([word.strip("'") for word in line.replace("'size_bytes <= 1'", "size_bytes<=1").split()])
    assert ended.value.code in (1, 2)
    said = capsys.readouterr().err
    assert "runs/y" in said
    assert "there are: runs/x" in said


def test_runs_and_what_they_were_made_with(tmp_path: Path) -> None:
    make_places(tmp_path)
    runs = tmp_path / "runs"
    (runs / "store" / "data-1").mkdir(parents=True)
    (runs / "store" / "data-1" / "manifest.json").write_text("{}")
    assert [path.name for path in runs_in(runs)] == ["half", "odd", "x"]
    assert recipe_values(runs / "odd", "export") == {"export.ship": "Q2_K"}
    assert recipe_values(runs / "odd", "bench") == {}
    assert trained_model(runs / "x") == runs / "x" / "merge"
    with pytest.raises(EdgeftError, match="no trained model yet"):
        trained_model(runs / "half")
