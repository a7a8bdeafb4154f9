"""How far a run is, seen from another terminal."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from edgeft.cli import main
from edgeft.cli.runs import row_of, verdict_word, watch_line
from edgeft.console import silent_log
from edgeft.errors import DataError
from edgeft.machine.process import is_alive, started_at
from edgeft.status import STATUS, RunStatus, read_status, seconds_left


class Made:
    def __init__(self, stage: str) -> None:
        self.stage = stage


def begun(folder: Path, *stages: str) -> RunStatus:
    """A run of three stages in which `stages` are made and the next one is begun."""
    status = RunStatus(folder / STATUS, folder.name, {"recipe_file": "r.yaml", "overrides": []})
    status.planned([("data", True), ("train", False), ("bench", False)])
    for stage in stages:
        status.begins(stage)
        status.ends(Made(stage))
    return status


def test_every_step_is_written(tmp_path: Path) -> None:
    status = begun(tmp_path / "x")
    status.begins("train")
    with status.log(silent_log()).progress("sft", 40, "steps", 4) as progress:
        status.written_s = 0.0
        progress.update(10, "loss 1.5")
        found = read_status(tmp_path / "x")
        assert found is not None
        assert [row["state"] for row in found["stages"]] == ["up to date", "running", "to do"]
        shown = {key: found["progress"][key] for key in ("label", "done", "total", "start", "note")}
        assert shown == {"label": "sft", "done": 10, "total": 40, "start": 4, "note": "loss 1.5"}
    assert row_of(tmp_path / "x")["stage"] == "train"
    status.ends(Made("train"))
    assert [row["state"] for row in json.loads((tmp_path / "x" / STATUS).read_text())["stages"]][1] == "done"


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [(None, "done", ""), (KeyboardInterrupt(), "stopped", "interrupted"), (DataError("no line"), "failed", "no line"),
     (ZeroDivisionError("ours"), "failed", "ZeroDivisionError")],
)  # fmt: skip
def test_the_end_is_kept(tmp_path: Path, error: BaseException | None, state: str, message: str) -> None:
    status = begun(tmp_path, "train")
    with pytest.raises(type(error)) if error else nullcontext(), status.recorded():
        if error is not None:
            raise error
    found = read_status(tmp_path)
    assert found is not None
    assert (found["state"], found["message"]) == (state, message)


def test_nothing_is_written_for_what_is_up_to_date(tmp_path: Path) -> None:
    status = RunStatus(tmp_path / STATUS, "x", {})
    with status.recorded():
        status.planned([("data", True)])
        status.ends(Made("data"))
    assert not (tmp_path / STATUS).exists()


def test_a_place_that_cannot_be_written_stops_no_run(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("a file")
    begun(tmp_path / "x", "train")
    assert read_status(tmp_path / "x") is None


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 2}', '{"format": 1}', '{"format": 1, "state": "running"}']
)
def test_a_file_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / STATUS).write_text(content)
    assert read_status(tmp_path) is None


def test_a_run_whose_process_is_gone_is_stopped(tmp_path: Path) -> None:
    begun(tmp_path, "train")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    edit(tmp_path, pid=child.pid, process_started=started_at(child.pid))
    assert read_status(tmp_path)["state"] == "running"  # type: ignore[index]
    edit(tmp_path, process_started="0")  # the number was given to another process
    assert read_status(tmp_path)["state"] == ("stopped" if started_at(child.pid) else "running")  # type: ignore[index]
    edit(tmp_path, process_started=started_at(child.pid))
    child.kill()
    child.wait()
    assert read_status(tmp_path)["state"] == "stopped"  # type: ignore[index]
    assert not is_alive(child.pid)
    edit(tmp_path, host="another machine")
    assert read_status(tmp_path)["state"] == "running"  # type: ignore[index]
    edit(tmp_path, updated_s=time.time() - 3600)
    assert read_status(tmp_path)["state"] == "stopped"  # type: ignore[index]


def edit(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / STATUS).read_text())
    (folder / STATUS).write_text(json.dumps(content | changes))


def rows(*states: tuple[str, str, float | None]) -> list[dict[str, Any]]:
    return [{"stage": stage, "state": state, "seconds": seconds, "began_s": 100.0} for stage, state, seconds in states]


COUNT = {"start": 10, "done": 20, "total": 60, "began_s": 105.0}
PREDICTED = {"train": 50.0, "export": 4.0, "bench": 10.0}


# stages, running count, predicted seconds, seconds left at 125 s
LEFT: dict[str, tuple[list[dict[str, Any]], dict[str, Any] | None, dict[str, float], float | None]] = {
    "as predicted": (rows(("train", "running", None), ("bench", "to do", None)), None, PREDICTED, 25 + 10),
    # 10 of 50 in 20 s: 80 s more; 105 s in all where 50 were predicted, so the rest takes 2.1 times as long
    "by the count": (rows(("train", "running", None), ("bench", "to do", None)), COUNT, PREDICTED, 80 + 21),
    "by what was done": (
        rows(("train", "done", 100.0), ("export", "running", None), ("bench", "to do", None)), None,
        PREDICTED | {"export": 40.0}, 40 * 2 - 25 + 20,
    ),
    "longer than predicted": (rows(("export", "running", None), ("bench", "to do", None)), None, PREDICTED, 0 + 10),
    "between two": (rows(("train", "done", 25.0), ("bench", "to do", None)), None, PREDICTED, 5),
    "nothing known": (rows(("train", "running", None), ("bench", "to do", None)), None, {}, None),
    "the last, unpredicted, by its count": (rows(("bench", "running", None)), COUNT, {}, 80),
    "nothing counted yet": (rows(("bench", "running", None)), COUNT | {"done": 10}, {}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_time_left_for_the_whole_run(name: str) -> None:
    stages, progress, predicted, left = LEFT[name]
    assert seconds_left({"stages": stages, "progress": progress}, predicted, 125.0) == pytest.approx(left)


def test_a_line_of_the_watch() -> None:
    row = {"run": "x", "n_done": 3, "n_stages": 9, "stage": "train"}
    count = COUNT | {"label": "sft", "unit": "steps", "note": "loss 1.234"}
    assert watch_line(row, count, 250.0) == ("x: stage 4 of 9: train, whole run 4:10 left, sft 20/60 steps, loss 1.234")
    assert watch_line(row, None, None) == "x: stage 4 of 9: train"


def finished(folder: Path, **verdict: Any) -> None:
    bench = {"accuracy": {"scores": [{"metric": "exact_match", "value": 0.75}]},
             "latency": {"summary": {"size_bytes": 4_790_000}}}  # fmt: skip
    for name, content in (("bench/bench.json", bench), ("gate/verdict.json", verdict)):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(json.dumps(content))
    with begun(folder, "train", "bench").recorded():
        pass


Show = Callable[..., tuple[int, str, str]]


@pytest.fixture
def show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Show:
    monkeypatch.chdir(tmp_path)

    def shown(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["runs", *words])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return shown


def test_results_of_an_earlier_run_are_not_those_of_this_one(tmp_path: Path) -> None:
    finished(tmp_path, passed=True, judges_accuracy=True)
    assert (row_of(tmp_path)["score"], row_of(tmp_path)["passed"]) == (0.75, True)
    begun(tmp_path).begins("train")
    assert (row_of(tmp_path)["score"], row_of(tmp_path)["size_bytes"]) == (None, None)


def test_the_runs_there_are(tmp_path: Path, show: Show) -> None:
    assert show() == (0, "", "no run in runs; `edgeft run RECIPE` makes one\n")
    finished(tmp_path / "runs" / "good", passed=True, judges_accuracy=True)
    finished(tmp_path / "runs" / "unjudged", passed=True, judges_accuracy=False)
    finished(tmp_path / "runs" / "bad", passed=False)
    begun(tmp_path / "runs" / "now", "train").begins("bench")
    edit_dead = begun(tmp_path / "runs" / "dead")
    edit_dead.content["pid"] = 2**22 + 1  # above every process number
    edit_dead.begins("train")
    lines = [" ".join(line.split()) for line in show()[1].splitlines()]
    assert lines == [
        "run state score size verdict path",
        "bad done 0.750 exact_match 4.79 MB FAIL runs/bad",
        "dead stopped at train - - - runs/dead",
        "good done 0.750 exact_match 4.79 MB PASS runs/good",
        "now running, stage 3 of 3: bench - - - runs/now",
        "unjudged done 0.750 exact_match 4.79 MB PASS, no accuracy budget runs/unjudged",
    ]
    found = json.loads(show("good", "--json")[1])
    assert (found[0]["score"], found[0]["passed"], found[0]["n_stages"]) == (0.75, True, 3)
    code, _, err = show("goood")
    assert code == 2
    assert "there are: runs/bad" in err


@pytest.mark.parametrize(("name", "code"), [("good", 0), ("bad", 3), ("dead", 1)])
def test_a_watch_ends_as_the_run_ended(tmp_path: Path, show: Show, name: str, code: int) -> None:
    if name == "dead":
        status = begun(tmp_path / "runs" / name)
        status.content["pid"] = 2**22 + 1
        status.begins("train")
    else:
        finished(tmp_path / "runs" / name, passed=name == "good")
    assert show(name, "--watch")[0] == code
    assert "no run is running" in show("--watch")[2]


@pytest.mark.slow
def test_watching_a_run_from_another_process(tmp_path: Path) -> None:
    """A child makes three stages; the watch prints plain lines, as JSON, until it is done."""
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from tests.test_status import Made, RunStatus, STATUS\n"
        "status = RunStatus(Path('runs/x') / STATUS, 'x', {'recipe_file': 'gone.yaml', 'overrides': []})\n"
        "with status.recorded():\n"
        "    status.planned([('data', False), ('train', False)])\n"
        "    for stage in ('data', 'train'):\n"
        "        status.begins(stage); print(stage, flush=True); input(); status.ends(Made(stage))\n"
    )
    root = Path(__file__).resolve().parents[1]
    where = {"cwd": tmp_path, "text": True, "env": environment(root)}
    run = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **where)  # type: ignore[call-overload]
    try:
        assert run.stdout.readline() == "data\n"
        watch = subprocess.Popen(
            [sys.executable, "-m", "edgeft", "runs", "--watch", "--json"], stdout=subprocess.PIPE, **where
        )  # type: ignore[call-overload]
        stages = [json.loads(watch.stdout.readline())["stage"]]
        run.stdin.write("\n")
        run.stdin.flush()
        stages.append(json.loads(watch.stdout.readline())["stage"])
        run.stdin.write("\n")
        run.stdin.flush()
        rest = watch.communicate(timeout=60)[0].splitlines()
    finally:
        run.kill()
    assert stages == ["data", "train"]
    assert json.loads(rest[-1])["state"] == "done"
    assert watch.returncode == 0


def environment(root: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(root)}


@pytest.mark.parametrize(
    ("row", "word"),
    [({"passed": None}, "-"), ({"passed": False, "judges_accuracy": True}, "FAIL"),
     ({"passed": True, "judges_accuracy": True}, "PASS"),
     ({"passed": True, "judges_accuracy": False}, "PASS, no accuracy budget")],
)  # fmt: skip
def test_the_verdict_in_a_word(row: dict[str, Any], word: str) -> None:
    assert verdict_word(row) == word
