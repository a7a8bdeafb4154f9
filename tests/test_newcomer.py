"""What a new user does wrong, or meets, in the first hour: the right words, the right exit code, no traceback."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeft.cli import main

Setup = Callable[[Path], None]
CHAT = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "card"}]}


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def init(folder: Path) -> None:
    with pytest.raises(SystemExit):
        main(["init", "mytask", "--template", "classify"])


def a_run(folder: Path) -> None:
    write(folder / "runs" / "classify" / "export" / "manifest.json", "{}")
    (folder / "runs" / "other").mkdir()


def same_answers(folder: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"q {i}"}, CHAT["messages"][1]]} for i in range(60)]
    write(folder / "same.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def csv(text: str, name: str = "s.csv") -> Setup:
    return lambda folder: write(folder / name, text)


def recipe(**edits: str) -> Setup:
    def setup(folder: Path) -> None:
        init(folder)
        path = folder / "mytask" / "recipe.yaml"
        text = path.read_text()
        for old, new in edits.values():
            assert old in text
            text = text.replace(old, new)
        path.write_text(text)

    return setup


def edited(old: str, new: str) -> Setup:
    return recipe(edit=(old, new))  # type: ignore[arg-type]


def nothing(folder: Path) -> None:
    pass


def a_file(folder: Path) -> None:
    write(folder / "file", "")


IMPORT = "data import s.csv -o s.jsonl --map prompt=q --map completion=a"
SIZE = 'size_bytes: "<= 20MB"'

# name of the item: (what is there, command, exit code, words of stdout and stderr, words that must not be)
CASES: dict[str, tuple[Setup, str, int, list[str], list[str]]] = {
    "M3 the report of a name that is none lists the runs": (
        a_run, "report runs/mytask", 2, ["runs/mytask: not the folder of a run; there are: runs/classify"], [],
    ),
    "M3 and so does pack": (a_run, "pack runs/mytask -o x.edgeft", 2, ["there are: runs/classify"], []),
    "M3 none yet": (nothing, "report runs/mytask", 2, ["none is here yet: `edgeft run RECIPE` makes one"], []),
    "M5 a score that is not measured": (
        edited(SIZE, 'json_match: ">= 0.9"'), "recipe show mytask/recipe.yaml", 2,
        ["recipe.yaml:35: gate.json_match: json_match is not measured", "bench.metrics (exact_match, label_accuracy)"],
        [],
    ),
    "M5 a share of 90": (
        edited(SIZE, 'exact_match: ">= 90"'), "run mytask/recipe.yaml --dry-run", 2,
        ["recipe.yaml:35: gate.exact_match: '>= 90': it is a share from 0 to 1, never 90; did you mean 0.9, or 90%?"],
        [],
    ),
    "M5 the sign the wrong way round": (
        nothing, "gate runs/x --budget 'exact_match => 0.9'", 2, ["'=> 0.9' is not a budget; write '>= 0.9'"], [],
    ),
    "M8 semicolons are seen": (csv("q;a\nhello;card\n"), IMPORT, 0, ["1 examples written"], ["lost"]),
    "M8 tabs are seen": (csv("q\ta\nhello, you\tcard\n"), IMPORT, 0, ["1 examples written"], []),
    "M8 or named": (
        csv("q~a\nhello~card\n"), IMPORT + " --delimiter '~'", 0, ["1 examples written"], [],
    ),
    "M8 the columns there are": (
        csv("frage;antwort\nhello;card\n"), IMPORT, 1, ["no row has the column q", "are: frage, antwort"], [],
    ),
    "M8 a ragged row": (
        csv("q,a\nhello,card\nhello,my,card\n"), IMPORT, 1,
        ["s.csv:3: 3 fields where the header has 2 (delimiter comma, columns q, a)", "--delimiter"], [],
    ),
    "M8 a workbook under another name": (
        lambda folder: write(folder / "s.csv", b"PK\x03\x04rest"), IMPORT, 1,
        ["s.csv: this is a zip archive or an Office file", "not CSV text"], [],
    ),
    "M9 no option that is not there": (
        a_file, "init file/mytask", 1, ["a part of the path is a file"], ["--workdir", ".tmp"],
    ),
    "M9 the option of the command": (
        lambda folder: (same_answers(folder), a_file(folder))[0],
        "data import same.jsonl -o file/x.jsonl", 1, ["(-o names it)"], ["--workdir", ".tmp"],
    ),
    "M10 every file that is missing, before anything": (
        nothing, "parity model files/model-Q4_K_M.gguf", 1, ["model: no model", "Q4_K_M.gguf: no such"], [],
    ),
    "M10 files of a recipe, all at once": (
        edited("train.jsonl ", "trian.jsonl "), "run mytask/recipe.yaml --set data.test=tset.jsonl", 1,
        ["recipe.yaml:12: data.train: no such file:", "--set: data.test: no such file:"], [],
    ),
    "M11 a model of the Hub": (
        edited("edgeft/nano ", "HuggingFaceTB/SmolLM2-135M "), "run mytask/recipe.yaml", 1,
        ["recipe.yaml:8: model.base", "hf download HuggingFaceTB/SmolLM2-135M --local-dir base"], [],
    ),
    "M11 a GGUF file": (
        edited("edgeft/nano ", "x.gguf "), "run mytask/recipe.yaml", 1, ["edgeft import x.gguf -o base"], [],
    ),
    "M11 a variable": (
        edited("edgeft/nano ", "${EDGEFT_NO_SUCH:-nowhere}/base "), "run mytask/recipe.yaml", 1,
        ["export EDGEFT_NO_SUCH=FOLDER"], [],
    ),
    "m1 the example in the help works": (init, "recipe show mytask/recipe.yaml --set seed=1", 0, ["seed: 1"], []),
    "m1 and the other": (init, "recipe show mytask/recipe.yaml --set train.learning_rate=1e-3", 0, ["0.001"], []),
    "m5 an empty file": (csv("", "e.jsonl"), "data check e.jsonl", 3, ["E113", "no example in the file"], ["I712"]),
    "m6 one answer": (same_answers, "data check same.jsonl --no-near", 0, ["W713", "'card', 60 times"], []),
    "m7 lr": (
        edited("learning_rate:", "lr:"), "recipe show mytask/recipe.yaml", 2,
        ["train.lr: unknown key; it is called train.learning_rate here"], ["known keys"],
    ),
    "m8 an unquoted budget": (
        edited(SIZE, "exact_match: > 0.9"), "recipe show mytask/recipe.yaml", 2,
        ['quote a value that begins with > or |: exact_match: "> 0.9"'], [],
    ),
    "m9 a success that frightens nobody": (
        csv("question,answer\nhello,card\n"), "data import s.csv -o s.jsonl", 0, ["1 examples written"], ["lost"],
    ),
    "m10 nothing is overwritten": (
        lambda folder: (csv("q,a\nx,y\n")(folder), write(folder / "s.jsonl", "mine"))[0],
        IMPORT, 2, ["s.jsonl: is already there, not overwritten", "--force"], [],
    ),
    "m10 unless asked": (
        lambda folder: (csv("q,a\nx,y\n")(folder), write(folder / "s.jsonl", "mine"))[0], IMPORT + " --force", 0,
        ["1 examples written"], [],
    ),
    "m12 a file that is not there": (
        nothing, "gate nope.json --budget 'size_bytes <= 1MB'", 1, ["nope.json: no such file"], ["nope.json/"],
    ),
    "m13 no recipe": (nothing, "run nope.yaml", 2, ["nope.yaml: cannot read the recipe"], []),
    "m14 one text for a broken line (check)": (
        csv('{"messages": [}\n', "b.jsonl"), "data check b.jsonl", 3, ["Expecting value at column 15"], [],
    ),
    "m22 an error for machines": (
        nothing, "run nope.yaml --json", 2, ['{"error": {"kind": "RecipeError", "message": "nope.yaml: cannot'], [],
    ),
    "m22 of wrong usage": (
        nothing, "gate nope.json --json", 2, ['"kind": "UsageError"', '"exit_code": 2'], [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_first_hour(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    setup, line, code, words, absent = CASES[name]
    monkeypatch.chdir(tmp_path)
    setup(tmp_path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(line))
    said = capsys.readouterr()
    told = " ".join((said.out + said.err).split())
    assert ended.value.code == code, told
    for word in words:
        assert word in told
    for word in absent:
        assert word not in told


@pytest.mark.parametrize(
    ("alias", "meant"),
    [
        ("lr", "train.learning_rate"), ("epochs", "train.num_train_epochs"), ("n_epochs", "train.num_train_epochs"),
        ("batch_size", "train.batch_tokens"), ("rank", "train.lora.r"), ("alpha", "train.lora.lora_alpha"),
        ("max_seq_length", "data.max_length"), ("suffix", "name"),
    ],
)  # fmt: skip
def test_names_of_other_trainers(alias: str, meant: str) -> None:
    from edgeft.errors import RecipeError
    from edgeft.recipe_reader import ALIASES, key_paths, recipe_from_text

    text = f"name: a\ndata: {{train: a, validation: b, test: c}}\ntrain: {{{alias}: 3}}\n"
    with pytest.raises(RecipeError, match=f"r.yaml:3: train.{alias}: unknown key; it is called {meant}"):
        recipe_from_text(text, Path("r.yaml"))
    assert {value.split(" ")[0].split(":")[0] for value in ALIASES.values()} <= set(key_paths())


@pytest.mark.parametrize(
    ("folder", "name"),
    [("mytask", "mytask"), ("My Task", "my-task"), ("_x", "x"), ("日本", "classify"), ("store", "classify")],
)
def test_init_names_the_run_after_its_folder(
    folder: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeft.recipe_reader import read_recipe

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["init", folder, "--template", "classify"])
    assert read_recipe(tmp_path / folder / "recipe.yaml").name == name


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "cp1252", "utf-8-sig"])
def test_jsonl_in_other_encodings(encoding: str, tmp_path: Path) -> None:
    """A marked file is read without a word, others by name; lines and letters stay."""
    from edgeft.data.mixing import read_source
    from edgeft.data.reading import read_examples
    from edgeft.sections import Source

    rows = [json.loads(json.dumps(CHAT).replace("hello", f"grüß {i} \u00e9")) for i in range(5)]
    path = tmp_path / "u.jsonl"
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(encoding))
    wanted = encoding if encoding in ("utf-16-le", "cp1252") else "auto"
    reading = read_examples(path, encoding=wanted)
    found = list(reading.examples)
    assert [line for line, _ in found] == [1, 2, 3, 4, 5]
    assert [example["messages"][0]["content"] for _, example in found] == [f"grüß {i} é" for i in range(5)]
    assert not reading.problems
    if encoding in ("utf-16", "utf-32", "utf-8-sig"):  # and so does a run
        examples = read_source(Source(path="u.jsonl"), tmp_path.joinpath)
        assert [example.messages for example in examples] == [row["messages"] for row in rows]


def test_excel_workbooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (("prompt", "completion"), ("hello", "card"), (None, None), ("2 + 2", 4)):
        book.active.append(row)
    book.save(tmp_path / "s.xlsx")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["data", "import", "s.xlsx", "-o", "s.jsonl", "--map", "prompt=prompt", "--map", "completion=completion"])
    assert ended.value.code == 0, capsys.readouterr().err
    rows: list[dict[str, Any]] = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [[message["content"] for message in row["messages"]] for row in rows] == [["hello", "card"], ["2 + 2", "4"]]
    (tmp_path / "b.xlsx").write_bytes(b"no workbook")
    with pytest.raises(SystemExit) as ended:
        main(["data", "import", "b.xlsx", "-o", "b.jsonl"])
    assert ended.value.code == 1
    assert "b.xlsx: not a readable Excel workbook" in capsys.readouterr().err


def test_no_number_that_json_has_not_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from edgeft.cli._output import print_json

    path = tmp_path / "n.jsonl"
    path.write_text("".join(json.dumps({**CHAT, "score": score}) + "\n" for score in (1.0, float("nan"))))
    with pytest.raises(SystemExit) as ended:
        main(["data", "import", str(path), "-o", str(tmp_path / "o.jsonl")])
    assert ended.value.code == 3
    assert "NaN" not in (tmp_path / "o.jsonl").read_text()
    capsys.readouterr()
    print_json({"a": float("inf"), "b": [float("nan"), 1.5]})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5]}
