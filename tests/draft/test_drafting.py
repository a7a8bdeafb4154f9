"""`edgeft init --data`: what a person's file becomes."""

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeft.cli import main
from edgeft.draft.looking import look
from edgeft.draft.writing import METRICS
from edgeft.recipe_reader import read_recipe

Run = Callable[..., tuple[int, str, str]]
WORDS = "amber basil cedar dune ember fjord grove haven islet jasper kelp lotus maple nectar onyx pearl".split()
INTENTS = {
    "card": "where is my {a} {b} card",
    "loan": "i want a loan for the {a} {b}",
    "rate": "what is the {a} {b} rate",
}


@pytest.fixture
def run_edgeft(capsys: pytest.CaptureFixture[str]) -> Run:
    """A command line: exit code, stdout, stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(words)
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out, said.err

    return run


def answered(*pairs: tuple[str, Any]) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": asked}, answer if isinstance(answer, dict) else
                      {"role": "assistant", "content": answer}]}
        for asked, answer in pairs
    ]  # fmt: skip


CALL = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "1", "type": "function", "function": {"name": "light", "arguments": "{}"}}]}  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "task"),
    [
        (["yes", "no"] * 10, "labels"),
        ([f"label {i % 6}" for i in range(60)], "labels"),
        (["positive"] * 19 + ["negative"], "labels"),
        ([f"label {i}" for i in range(60)], "text"),  # each once: no list to choose from
        (["the same"] * 20, "text"),  # nothing to choose
        (["a long answer " * 10, "another one " * 10] * 10, "text"),
        (['{"a": 1}', '{"a": 2}'] * 10, "json"),
        (["[]"] * 19 + ["none"], "json"),
        (['{"a": 1}'] * 10 + ["sorry, no"] * 10, "labels"),
        (["7", "9"] * 10, "labels"),  # numbers are JSON, and no container
        ([CALL, "which lamp?"] * 10, "tools"),
        ([CALL, "which lamp?", "ok"] * 10, "labels"),
        (["[" * 5000] * 20 + ["x", "y"] * 20, "text"),
    ],
)
def test_the_task_is_seen_from_the_answers(answers: list[Any], task: str) -> None:
    assert look(answered(*((f"question {i}", answer) for i, answer in enumerate(answers)))).task == task


def requests(n: int) -> list[tuple[str, str]]:
    """Distinct requests, and what each is about."""
    pairs = [(a, b) for a in WORDS for b in WORDS]
    kinds = list(INTENTS)
    return [(INTENTS[kinds[i % 3]].format(a=pairs[i][0], b=pairs[i][1]), kinds[i % 3]) for i in range(n)]


def write_csv(path: Path, rows: list[tuple[str, str]], header: tuple[str, str] = ("text", "label")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.slow
def test_a_csv_of_labels_becomes_a_recipe(tmp_path: Path, run_edgeft: Run) -> None:
    rows = requests(180)
    data = write_csv(tmp_path / "requests.csv", rows)
    code, out, err = run_edgeft("init", str(tmp_path / "My Task"), "--data", str(data))
    assert code == 0, err
    folder = tmp_path / "My Task"
    assert [Path(line).name for line in out.split("\n") if line] == [
        "train.jsonl", "validation.jsonl", "test.jsonl", "recipe.yaml",
    ]  # fmt: skip
    splits = {name: read(folder / f"{name}.jsonl") for name in ("train", "validation", "test")}
    assert sorted(example["messages"][0]["content"] for some in splits.values() for example in some) == sorted(
        asked for asked, _ in rows
    )
    for some in splits.values():  # the shares hold within each label
        counts = Counter(example["messages"][1]["content"] for example in some)
        assert max(counts.values()) - min(counts.values()) <= 2, counts
    recipe = read_recipe(folder / "recipe.yaml")
    assert recipe.name == "my-task"
    assert recipe.model.base == "edgeft/nano"
    assert (recipe.train.method, recipe.train.hyperparameters) == ("full", "auto")
    assert recipe.bench.metrics == list(METRICS["labels"])
    assert set(recipe.gate) >= {"label_accuracy_gain", "label_accuracy_drop", "size_bytes"}
    assert recipe.data.swap_copied_values == 0
    assert "180 examples, 3 labels" in err
    assert f"edgeft run {folder / 'recipe.yaml'}" in err


@pytest.mark.slow
def test_json_answers_get_json_metrics_and_swapped_values(tmp_path: Path, run_edgeft: Run) -> None:
    data = tmp_path / "calls.jsonl"
    rows = answered(*((asked, json.dumps({"about": kind, "word": asked.split()[3]})) for asked, kind in requests(60)))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    code, _, err = run_edgeft("init", str(tmp_path / "calls"), "--data", str(data))
    assert code == 0, err
    recipe = read_recipe(tmp_path / "calls/recipe.yaml")
    assert recipe.bench.metrics == list(METRICS["json"])
    assert recipe.data.swap_copied_values == 1
    longest = max(len(row["messages"][1]["content"]) for row in rows)
    assert 8 < recipe.bench.max_new_tokens <= 2 * longest
    assert recipe.bench.n_ctx >= recipe.data.max_length


@pytest.mark.slow
def test_what_is_nearly_the_same_stays_on_one_side(tmp_path: Path, run_edgeft: Run) -> None:
    rows = [(asked + end, kind) for asked, kind in requests(60) for end in ("", "!", "?!")]
    data = write_csv(tmp_path / "requests.csv", rows)
    assert run_edgeft("init", str(tmp_path / "t"), "--data", str(data))[0] == 0
    sides = {
        example["messages"][0]["content"]: name
        for name in ("train", "validation", "test")
        for example in read(tmp_path / f"t/{name}.jsonl")
    }
    apart = [asked for asked, _ in requests(60) if len({sides[asked + end] for end in ("", "!", "?!")}) > 1]
    assert len(apart) <= 3, apart  # MinHash estimates: near duplicates of 0.8 are found nearly always


@pytest.mark.parametrize(
    ("rows", "words", "code", "said"),
    [
        (requests(7), (), 1, "7 examples are too few"),
        (requests(60), ("--template", "classify"), 2, "not both"),
        (requests(60), ("--base", "nowhere"), 2, "no such folder"),
        pytest.param(requests(60), ("--group", "nothing"), 2, "no example has this field", marks=pytest.mark.slow),
        (requests(60), ("--map", "prompt"), 2, "NAME=COLUMN"),
    ],
)
def test_what_cannot_be_drafted_says_why(
    tmp_path: Path, run_edgeft: Run, rows: list[tuple[str, str]], words: tuple[str, ...], code: int, said: str
) -> None:
    data = write_csv(tmp_path / "requests.csv", rows)
    got, out, err = run_edgeft("init", str(tmp_path / "t"), "--data", str(data), *words)
    assert (got, said in err) == (code, True), err
    assert not out
    assert not (tmp_path / "t").exists()


@pytest.mark.slow
def test_other_column_names_are_mapped(tmp_path: Path, run_edgeft: Run) -> None:
    data = write_csv(tmp_path / "requests.csv", requests(60), ("utterance", "kind"))
    code, _, err = run_edgeft("init", str(tmp_path / "t"), "--data", str(data))
    assert code == 1
    assert "utterance" in err
    words = ("--map", "prompt=utterance", "--map", "completion=kind")
    code, _, err = run_edgeft("init", str(tmp_path / "t"), "--data", str(data), *words)
    assert (code, "3 labels" in err) == (0, True), err


def test_nothing_is_overwritten(tmp_path: Path, run_edgeft: Run) -> None:
    data = write_csv(tmp_path / "requests.csv", requests(60))
    (tmp_path / "t").mkdir()
    (tmp_path / "t/test.jsonl").write_text("mine", "utf-8")
    code, _, err = run_edgeft("init", str(tmp_path / "t"), "--data", str(data))
    assert (code, "test.jsonl" in err) == (2, True)
    assert [path.name for path in (tmp_path / "t").iterdir()] == ["test.jsonl"]


def test_preferences_are_not_answers(tmp_path: Path, run_edgeft: Run) -> None:
    data = tmp_path / "pairs.jsonl"
    row = {"prompt": "hello", "chosen": "hi", "rejected": "go away"}
    data.write_text("".join(json.dumps(row | {"prompt": f"hello {i}"}) + "\n" for i in range(20)), "utf-8")
    code, _, err = run_edgeft("init", str(tmp_path / "t"), "--data", str(data))
    assert (code, "recipes/dpo.yaml" in err) == (1, True)
