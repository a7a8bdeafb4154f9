"""The data stage: what it keeps, what it counts, what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgeft.console import silent_log
from edgeft.errors import DataError, EdgeftError, ModelError
from edgeft.recipe_reader import read_recipe
from edgeft.stages.data import run
from edgeft.training.batches import TokenSet
from tests.tiny import make_tiny_llama

GOOD = {"messages": [{"role": "user", "content": "light on"}, {"role": "assistant", "content": "ok"}], "room": "hall"}
LONG = {"messages": [{"role": "user", "content": "light on " * 40}, {"role": "assistant", "content": "ok"}]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_tiny_llama(tmp_path / "base")
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD) + "\n")
    return tmp_path


def _run(
    folder: Path, model: dict[str, Any] | None = None, distill: dict[str, Any] | None = None, **data: Any
) -> tuple[dict[str, float], Path]:
    recipe = {
        "name": "t",
        "model": {"base": "base", **(model or {})},
        "data": {
            "train": "train.jsonl",
            "validation": "validation.jsonl",
            "test": "test.jsonl",
            "max_length": 64,
            "allow": ["E503"],
        }
        | data,
        "train": {},
        **({"distill": distill} if distill else {}),
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    out = folder / "out"
    out.mkdir()
    return run(read_recipe(folder / "recipe.yaml"), {}, out, silent_log()), out


def test_the_prepared_set(folder: Path) -> None:
    metrics, out = _run(folder)
    assert metrics["train_examples"] == 2
    assert [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()] == [GOOD, GOOD]
    tokens = TokenSet.load(out / "tokens-train.npz")
    assert metrics["train_tokens"] == len(tokens.input_ids) == tokens.offsets[-1]
    assert metrics["train_loss_tokens"] == tokens.loss_mask.sum()
    assert (out / "tokenizer" / "chat_template.jinja").read_text().startswith("{% for message")


def test_questions_without_answers_that_no_split_answers(folder: Path) -> None:
    asked = ["light on", "LIGHT  on", "heat up", "heat up", "door shut"]
    rows = [{"messages": [{"role": "user", "content": text}]} for text in asked]
    rows[2]["messages"].append({"role": "assistant", "content": "not looked at"})
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, out = _run(folder, unlabelled="asked.jsonl", distill={"student": {"num_hidden_layers": 1}})
    kept = [json.loads(line)["messages"] for line in (out / "unlabelled.jsonl").read_text().splitlines()]
    assert kept == [[{"role": "user", "content": text}] for text in ("heat up", "door shut")]
    assert json.loads((out / "summary.json").read_text())["unlabelled"] == {"examples": 2, "left_out": 1}


@pytest.mark.parametrize("split", ["train", "validation", "test", "unlabelled"])
def test_what_the_template_leaves_out_stops_the_stage(folder: Path, split: str) -> None:
    """The base's template is plain ChatML, which writes no tools."""
    messages = [{"role": "user", "content": "heat up"}, {"role": "assistant", "content": "ok"}]
    row = {"messages": messages, "tools": [{"type": "function", "function": {"name": "light"}}]}
    (folder / f"{split}.jsonl").write_text(json.dumps(GOOD) + "\n" + json.dumps(row) + "\n")
    more = {"unlabelled": "unlabelled.jsonl", "distill": {"student": {"num_hidden_layers": 1}}}
    with pytest.raises(DataError, match=rf"{split}\.jsonl:2: the chat template leaves out tools\[0\]\.function\.name"):
        _run(folder, **(more if split == "unlabelled" else {}))


def test_a_line_without_a_question_is_named(folder: Path) -> None:
    row = {"messages": [{"role": "system", "content": "be brief"}]}
    (folder / "asked.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"asked\.jsonl:1: no user's message that the teacher could answer"):
        _run(folder, unlabelled="asked.jsonl", distill={"student": {"num_hidden_layers": 1}})


@pytest.mark.parametrize(("policy", "kept", "dropped", "truncated"), [("drop", 2, 1, 0), ("truncate", 3, 0, 1)])
def test_long_examples_are_counted(folder: Path, policy: str, kept: int, dropped: int, truncated: int) -> None:
    early = {"messages": [{"role": "assistant", "content": "ok"}, *LONG["messages"]]}
    with (folder / "train.jsonl").open("a") as file:
        file.write(json.dumps(early) + "\n")
    metrics, out = _run(folder, on_too_long=policy)
    assert metrics["train_examples"] == kept
    assert (metrics["train_dropped"], metrics["train_truncated"]) == (dropped, truncated)
    assert metrics["train_longest"] > 64
    assert TokenSet.load(out / "tokens-train.npz").lengths.max() <= 64


def test_a_cut_example_with_nothing_left_to_learn_is_dropped_and_counted(folder: Path) -> None:
    with (folder / "train.jsonl").open("a") as file:
        file.write(json.dumps(LONG) + "\n")
    metrics, _ = _run(folder, on_too_long="truncate")
    assert (metrics["train_examples"], metrics["train_dropped"], metrics["train_truncated"]) == (2, 1, 0)


def test_the_test_split_is_never_cut(folder: Path) -> None:
    with (folder / "test.jsonl").open("a") as file:
        file.write(json.dumps(LONG) + "\n")
    metrics, out = _run(folder)
    assert metrics["test_examples"] == 3
    assert len((out / "test.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", r"train\.jsonl:4: not JSON"),
        ("[1, 2]", r"train\.jsonl:4: not an object with a \"messages\" list"),
        ('{"messages": []}', r"train\.jsonl:4: messages is empty"),
        ('{"messages": [{"role": "user", "content": "a"}]}', r"train\.jsonl:4: no assistant turn"),
        (
            '{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "a"}]}',
            r"train\.jsonl:4: the last message is not the assistant's",
        ),
        ('{"messages": [{"role": "assistant", "content": " "}]}', r"train\.jsonl:4: the assistant's answer is empty"),
        ('{"messages": [{"role": "bot", "content": "a"}]}', r"messages\[0\]\.role is 'bot'; known roles: system"),
        ('{"messages": [{"role": "user", "content": 3}]}', r"messages\[0\]\.content is not a string"),
        ('{"messages": ["a"]}', r"messages\[0\] is not an object"),
    ],
)
def test_bad_lines_are_named(folder: Path, line: str, message: str) -> None:
    with (folder / "train.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=message):
        _run(folder)


def test_all_bad_lines_are_shown_at_once(folder: Path) -> None:
    (folder / "train.jsonl").write_text("{\n" * 30)
    with pytest.raises(DataError, match=r"(?s)jsonl:1: .*jsonl:20: .*and 10 more lines"):
        _run(folder)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f: (f / "train.jsonl").unlink(), DataError, "no such file"),
        (lambda f: (f / "train.jsonl").write_text("\n"), DataError, "no example in this file"),
        (lambda f: (f / "train.jsonl").write_bytes(b'{"messages": "\xff"}'), DataError, "not UTF-8"),
        (lambda f: (f / "train.jsonl").write_text(json.dumps(LONG)), DataError, "no training example is left: all 1"),
        (lambda f: (f / "base" / "tokenizer.json").unlink(), ModelError, "no tokenizer"),
        (lambda f: (f / "base" / "config.json").unlink(), ModelError, "no config.json"),
        (lambda f: (f / "base" / "model.safetensors").rename(f / "base" / "pytorch_model.bin"), ModelError, "a pickle"),
        (
            lambda f: (f / "base" / "model.safetensors").write_bytes(
                (f / "base" / "model.safetensors").read_bytes()[:-100]
            ),
            ModelError,
            r"model\.safetensors: \d+ bytes where its header asks for \d+: truncated",
        ),
        (lambda f: (f / "base" / "chat_template.jinja").unlink(), ModelError, "no chat template; set model"),
    ],
)
def test_what_cannot_be_used(folder: Path, change: Any, error: type[EdgeftError], message: str) -> None:
    change(folder)
    with pytest.raises(error, match=message):
        _run(folder)


@pytest.mark.parametrize(
    ("model", "data", "error", "message"),
    [
        ({"base": "nowhere"}, {}, ModelError, "nowhere is not a folder"),
        ({"chat_template": "mine.jinja"}, {}, ModelError, "no file .*mine.jinja; named templates are chatml, plain"),
        ({}, {"max_length": 8, "on_too_long": "error"}, DataError, r"train\.jsonl:1: \d+ tokens, more than data.max"),
        ({}, {"prepare": {"script": "gone.py"}}, DataError, "no file .*gone.py"),
    ],
)
def test_recipes_that_cannot_be_run(
    folder: Path, model: dict[str, Any], data: dict[str, Any], error: type[EdgeftError], message: str
) -> None:
    with pytest.raises(error, match=message):
        _run(folder, model, **data)


def test_a_failing_prepare_script_shows_its_last_words(folder: Path) -> None:
    (folder / "prepare.py").write_text("import sys\nsys.exit('the table has no column utterance')\n")
    with pytest.raises(DataError, match=r"(?s)exit code 1:.*no column utterance"):
        _run(folder, prepare={"script": "prepare.py"})


def _run_text(folder: Path, name: str, content: str) -> list[list[int]]:
    (folder / name).write_text(content)
    recipe = {
        "name": "t",
        "model": {"base": "base"},
        "data": {split: f"{split}.jsonl" for split in ("train", "validation", "test")}
        | {"text": name, "allow": ["E503"]},
        "train": {"objective": "text"},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    out = folder / f"out-{name}"
    out.mkdir()
    run(read_recipe(folder / "recipe.yaml"), {}, out, silent_log())
    tokens = TokenSet.load(out / "tokens-text.npz")
    assert tokens.loss_mask.all()
    return [tokens.input_ids[a:b].tolist() for a, b in zip(tokens.offsets, tokens.offsets[1:], strict=False)]


def test_plain_text_in_both_shapes(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    wanted = [
        [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        for text in ("One day.\nIt rained.", "Then not.")
    ]
    assert _run_text(folder, "a.txt", "One day.\r\nIt rained.\n\n\n\nThen not.\n") == wanted
    lines = [json.dumps({"text": text}) for text in ("One day.\nIt rained.", "", " Then not. ")]
    assert _run_text(folder, "a.jsonl", "\n".join(lines)) == wanted


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"text": "a"}\n{"text"', "a.jsonl:2: not JSON"),
        ('{"text": "a"}\n{"txt": "b"}', 'a.jsonl:2: not an object with a "text"'),
        ("\n", "a.jsonl: no text in this file"),
    ],
)
def test_bad_text_is_named_by_line(folder: Path, content: str, expected: str) -> None:
    with pytest.raises(DataError) as caught:
        _run_text(folder, "a.jsonl", content)
    assert expected in str(caught.value)


def test_pairs_that_are_all_too_long(folder: Path) -> None:
    pair = {
        "prompt": [{"role": "user", "content": "light on " * 400}],
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    other = json.loads(json.dumps(pair).replace("light", "lamp"))
    (folder / "pairs.jsonl").write_text(json.dumps(pair) + "\n" + json.dumps(other) + "\n")
    recipe = {
        "name": "t",
        "model": {"base": "base"},
        "data": {split: f"{split}.jsonl" for split in ("train", "validation", "test")}
        | {"allow": ["E503"]}
        | {"preference": "pairs.jsonl", "preference_validation": 0.5},
        "train": {"objective": "dpo"},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    (folder / "out").mkdir()
    with pytest.raises(DataError, match="no preference pair is left for train: of 1, 1 are longer"):
        run(read_recipe(folder / "recipe.yaml"), {}, folder / "out", silent_log())
