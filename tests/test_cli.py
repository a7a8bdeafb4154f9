"""The command line as tables of (arguments, exit code, what is said), and its errors."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from edgeft import __version__
from edgeft.bench.budgets import split_budget
from edgeft.cli import COMMANDS, main
from edgeft.cli._output import size, table
from edgeft.cli.init import NAMES
from edgeft.errors import GateFailed, RecipeError
from edgeft.interrupts import Interrupted
from edgeft.recipe_reader import read_recipe


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command line in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(words)
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out, said.err

    return run


@pytest.mark.parametrize(
    ("words", "code", "out", "err"),
    [
        (["--version"], 0, f"edgeft, version {__version__}", ""),
        (["--help"], 0, "Write a recipe, for your examples or", ""),
        (["-h"], 0, "Judge measurements against budgets.", ""),
        (["recipe", "--help"], 0, "schema", ""),
        (["rnu"], 2, "", "No command 'rnu'. Did you mean run?"),
        (["--nope"], 2, "", "No such option"),
        (["run"], 2, "", "Missing argument 'RECIPE'"),
        (["run", "missing.yaml"], 2, "", "missing.yaml: cannot read the recipe (No such file or directory)"),
        (["run", "."], 2, "", "recipe.yaml: cannot read the recipe"),
        (["train", "missing.yaml"], 2, "", "error: missing.yaml: cannot read the recipe"),
        (["init", "d", "--template", "nope"], 2, "", "'nope' is not one of 'tool-calls', 'classify', 'extract'"),
        (["bench", "file.gguf"], 2, "", "needs --data FILE"),
        (["bench", "r.yaml", "--limit", "3"], 2, "", "with a recipe, set these in its section `bench`"),
        (["gate", "runs/x"], 2, "", "nothing to judge by"),
        (["gate", "runs/x", "--budget", "exact_mach >= 0.9"], 1, "", "edgeft bench"),
        (
            ["parity", "nowhere", "a.gguf", "b.gguf"],
            1,
            "",
            "nowhere: no model folder (it has no config.json)\na.gguf: no",
        ),
        (["gate", "runs/x", "--budget", "exact_match => 0.9"], 2, "", "write '>= 0.9'"),
        (["gate", "runs/x", "--budget", "exact_match >= 90"], 2, "", "a share from 0 to 1, never 90"),
        (["gate", "runs/x", "--budget", "exact_match >= 0.9"], 1, "", "runs/x: no such file or folder; give"),
        (["gate", "r.yaml", "--budget", "exact_match >= 0.9"], 2, "", "budgets stand in its section `gate`"),
        (["report", "runs/x"], 2, "", "not the folder of a run"),
    ],
)
def test_commands(cli: Any, words: list[str], code: int, out: str, err: str) -> None:
    found = cli(*words)
    assert found[0] == code, found
    assert out in found[1]
    assert err in found[2]
    assert bool(found[1]) == (code == 0)  # results on stdout, talk on stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(cli: Any, name: str) -> None:
    code, out, _ = cli(name, "--help")
    assert code == 0
    assert COMMANDS[name][1].rstrip(".") in " ".join(out.split())


@pytest.mark.parametrize("name", NAMES)
def test_a_template_is_a_recipe_and_is_never_written_over(cli: Any, tmp_path: Path, name: str) -> None:
    code, out, err = cli("init", "here", "--template", name)
    assert (code, len(out.splitlines())) == (0, 4)
    assert "edgeft run here/recipe.yaml" in err
    recipe = read_recipe(tmp_path / "here" / "recipe.yaml")
    for split in ("train", "validation", "test"):
        lines = recipe.resolve(getattr(recipe.data, split)).read_text().splitlines()
        assert all(json.loads(line)["messages"][-1]["role"] == "assistant" for line in lines)
    (tmp_path / "here" / "train.jsonl").write_text("mine")
    (tmp_path / "here" / "recipe.yaml").unlink()
    code, _, err = cli("init", "here", "--template", name)
    assert code == 2
    assert "already there, not overwritten: here/test.jsonl, here/train.jsonl" in err
    assert (tmp_path / "here" / "train.jsonl").read_text() == "mine"
    assert not (tmp_path / "here" / "recipe.yaml").exists()


def test_recipe_schema_is_json(cli: Any) -> None:
    code, out, _ = cli("recipe", "schema")
    schema = json.loads(out)
    assert (code, schema["title"]) == (0, "Recipe")
    assert schema["$schema"].startswith("https://json-schema.org/")


def test_recipe_show_prints_a_whole_recipe(cli: Any, tmp_path: Path) -> None:
    cli("init", "here")
    code, out, _ = cli("recipe", "show", "here", "--set", "seed=7")
    assert code == 0
    (tmp_path / "shown.yaml").write_text(out)
    shown = read_recipe(tmp_path / "shown.yaml")
    assert shown.model_dump() == read_recipe(tmp_path / "here" / "recipe.yaml", ("seed=7",)).model_dump()
    assert json.loads(cli("recipe", "show", "here/recipe.yaml", "--json")[1])["train"]["learning_rate"] == 2e-3


def test_all_problems_of_a_recipe_are_said(cli: Any, tmp_path: Path) -> None:
    cli("init", "here")
    path = tmp_path / "here" / "recipe.yaml"
    path.write_text(path.read_text().replace("seed: 42", "sed: 42").replace("2e-3", "fast"))
    code, out, err = cli("run", "here/recipe.yaml", "--set", "bench.n_ctx=1.5")
    assert (code, out) == (2, "")
    assert "recipe.yaml:5: sed: unknown key; did you mean seed?" in err
    assert "train.learning_rate: must be a number, not the text 'fast'" in err
    assert "--set: bench.n_ctx: must be a whole number, not 1.5" in err


def make_base(folder: Path) -> None:
    """A folder with the header of a Llama of 1,000,000 weights, enough for a dry run."""
    folder.mkdir()
    config = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 384}
    (folder / "config.json").write_text(json.dumps(config))
    header = json.dumps({"w": {"dtype": "F32", "shape": [1000, 1000], "data_offsets": [0, 4_000_000]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


def test_dry_run(cli: Any, tmp_path: Path) -> None:
    cli("init", "here")
    make_base(tmp_path / "base")
    dry = ("run", "here/recipe.yaml", "--dry-run", "--set", "model.base=../base")
    code, out, _ = cli(*dry)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["stage", "disk", "memory", "minutes", "state"]
    assert [line.split()[0] for line in lines[1:10]] == [
        "data", "train", "merge", "export", "parity", "baseline", "bench", "gate", "report",
    ]  # fmt: skip
    assert lines[3].split()[1:3] == ["4", "MB"]  # 1 M weights in float32
    assert "rough estimates" in lines[10]
    assert not (tmp_path / "runs").exists()
    stages = json.loads(cli(*dry, "--json")[1])
    assert [stage["up_to_date"] for stage in stages] == [False] * 9
    assert stages[2]["disk_bytes"] == 4_000_000
    code, _, err = cli("run", "here/recipe.yaml", "--dry-run", "--set", "model.base=nowhere")
    assert code == 1
    assert "model.base" in err


def test_dry_run_of_a_broken_base(cli: Any, tmp_path: Path) -> None:
    cli("init", "here")
    make_base(tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").write_bytes(b"\xff" * 20)
    code, _, err = cli("run", "here/recipe.yaml", "--dry-run", "--set", "model.base=../base")
    assert code == 1
    assert "cannot read the shape of the model" in err


def raising(error: BaseException) -> Any:
    def command(name: str, text: str) -> click.Command:
        @click.command(name)
        def failing() -> None:
            raise error

        return failing

    return command


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (GateFailed("exact_match is 0.4"), 3, "error: exact_match is 0.4\n"),
        (RecipeError("r.yaml:3: a: wrong"), 2, "error: r.yaml:3: a: wrong\n"),
        (KeyboardInterrupt(), 130, "interrupted; to begin again: edgeft run\n"),
        (
            Interrupted(15, ("stage data", "sft: 7 of 9 steps")),
            143,
            "interrupted; kept: stage data; sft: 7 of 9 steps\nto go on: edgeft run\n",
        ),
    ],
)
def test_errors_become_one_message_and_a_code(
    cli: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    monkeypatch.setattr("edgeft.cli.run.command", raising(error))
    found = cli("run")
    assert (found[0], found[1], found[2].lstrip()) == (code, "", said)


def test_debug_shows_the_traceback(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeft.cli.run.command", raising(GateFailed("exact_match is 0.4")))
    with pytest.raises(GateFailed):
        main(["run", "--debug"])


def test_bugs_of_ours_stay_tracebacks(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeft.cli.run.command", raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["run"])


def test_a_missing_package_names_the_extra(tmp_path: Path) -> None:
    """In a process where torch cannot be imported."""
    make_base(tmp_path / "base")
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from edgeft.cli import main\n"
        f"main(['data', {str(tmp_path / 'here')!r}, '--set', 'model.base=../base'])"
    )
    with pytest.raises(SystemExit):
        main(["init", str(tmp_path / "here")])
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'not installed (torch); pip install "edgeft[train]"' in done.stderr


def test_every_recipe_here_reads(repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFT_SHARED", "/shared")
    paths = [*(repo_root / "recipes").rglob("*.yaml"), *(repo_root / "edgeft" / "templates").rglob("*.yaml")]
    assert len(paths) >= 3
    for path in paths:
        read_recipe(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("exact_match >= 0.9", ("exact_match", ">= 0.9")),
        ("exact_match>=0.9", ("exact_match", ">=0.9")),
        ("exact_match: >= 0.9", ("exact_match", ">= 0.9")),
        ("exact_match=>= 0.9", ("exact_match", ">= 0.9")),
        ("exact_match == 1", ("exact_match", "== 1")),
        ("exact_match => 0.9", ("exact_match", "=> 0.9")),
        ("exact_match =< 0.9", ("exact_match", "=< 0.9")),
        ("exact_match=<= 0.9", ("exact_match", "<= 0.9")),
        ("exact_match", ("exact_match", "")),
    ],
)
def test_budgets_on_the_command_line(text: str, expected: tuple[str, str]) -> None:
    assert split_budget(text) == expected


def test_tables_and_sizes() -> None:
    assert table(("name", "n"), [("a", "1"), ("long", "23")]) == "name   n\na      1\nlong  23"
    assert [size(n) for n in (0, 950, 7_340_000, 1.2e9)] == ["0 B", "950 B", "7.34 MB", "1.2 GB"]


STAGE_FILES = {
    "bench": {"bench.json": "{}"},
    "report": {"report.txt": "report"},
    "gate": {"verdict.json": '{"passed": true, "rows": []}'},
}


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (
            "run here/recipe.yaml",
            "stages data, train, merge, export, parity, baseline, bench, gate; report: begins again",
        ),
        ("run here/recipe.yaml --until train --set 'data.allow=[E503]'", "stage data; sft: 7 of 9 steps"),
        ("data prepare here/recipe.yaml", "no stage was done yet; data: begins again"),
        ("data here/recipe.yaml", "no stage was done yet; data: begins again"),
        ("train here/recipe.yaml --workdir 'two words'", "stage data; sft: 7 of 9 steps"),
        ("merge here/recipe.yaml", "stages data, train; merge: begins again"),
        ("export here/recipe.yaml", "stages data, train, merge; export: begins again"),
        ("parity here/recipe.yaml --json", "stages data, train, merge, export; parity: begins again"),
        ("bench here/recipe.yaml --json", "stages data, train, merge, export; bench: begins again"),
        ("gate here/recipe.yaml", "stages data, train, merge, export, parity, baseline, bench; gate: begins again"),
        ("report here/recipe.yaml", "stages data, train, merge, export, parity, baseline, bench, gate; report: begins"),
    ],
)
def test_what_is_said_to_go_on_goes_on(cli: Any, monkeypatch: pytest.MonkeyPatch, line: str, kept: str) -> None:
    """Every command that runs a recipe, cut short at its last stage; then the line it prints, word for word."""
    made: list[str] = []
    stopped = {"at": kept.split("; ")[-1].split(":")[0].replace("sft", "train")}

    def stage(planned: Any) -> Any:
        def function(recipe: Any, inputs: Any, out: Path, log: Any) -> dict[str, float]:
            if planned.stage == stopped.get("at"):
                del stopped["at"]
                raise Interrupted(15, ("sft: 7 of 9 steps",)) if planned.stage == "train" else KeyboardInterrupt
            for name, text in STAGE_FILES.get(planned.stage, {"file": ""}).items():
                (out / name).write_text(text)
            made.append(planned.stage)
            return {}

        return function

    monkeypatch.setattr("edgeft.pipeline._import_stage", stage)
    cli("init", "here")
    code, out, err = cli(*shlex.split(line))
    assert code == (143 if "sft" in kept else 130)
    assert ('"kind": "Interrupted"' in out) is ("--json" in line)
    said = err.splitlines()
    assert said[-2].startswith(f"interrupted; kept: {kept}")
    assert said[-1] == f"to go on: edgeft {line}"
    before = list(made)
    assert cli(*shlex.split(said[-1].removeprefix("to go on: edgeft ")))[0] == 0
    assert len(made) == len(before) + 1  # nothing was made twice
