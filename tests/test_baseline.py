"""The baseline stage on tiny models, and the classical baseline on data it can and cannot solve."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgeft.artifact import Artifact, write_manifest
from edgeft.bench.examples import Example
from edgeft.console import silent_log
from edgeft.recipe import Recipe
from edgeft.stages import baseline
from edgeft.stages._classical import LINEAR, NEAREST, classical_answers
from tests.tiny import make_tiny_llama

ROOMS = ("kitchen", "bedroom", "hall", "garage")


def chat(question: str, answer: str, system: str = "You are a home.") -> dict[str, Any]:
    roles = (("system", system), ("user", question), ("assistant", answer))
    return {"messages": [{"role": role, "content": content} for role, content in roles]}


def example(question: str, answer: str) -> Example:
    return Example(tuple(chat(question, answer)["messages"][:-1]), answer)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a `data` and a `merge` artifact; the merged model is the base with other weights."""
    folder = tmp_path_factory.mktemp("run")
    base = make_tiny_llama(folder / "base", max_position_embeddings=256)
    make_tiny_llama(folder / "merge", seed=1, max_position_embeddings=256)
    data = folder / "data"
    AutoTokenizer.from_pretrained(base).save_pretrained(data / "tokenizer")
    train = [chat(f"turn on the {room} light {i}", room) for room in ROOMS for i in range(6)]
    test = [chat(f"light in the {room} please", room) for room in ROOMS]
    test += [chat("light " * 300 + "kitchen", "kitchen")]
    for name, rows in (("train", train), ("test", test)):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for stage in ("data", "merge"):
        write_manifest(folder / stage, stage, f"key of {stage}", {}, {})
    return folder


@pytest.fixture(scope="module")
def result(run_folder: Path) -> tuple[dict[str, float], dict[str, Any], Path]:
    content = {
        "name": "tiny",
        "model": {"base": "base"},
        "data": {"train": "t", "validation": "v", "test": "s"},
        "train": {},
        "bench": {
            "metrics": ["exact_match", "json_valid", "label_accuracy"],
            "max_new_tokens": 10,
            "baseline_limit": 3,
            "few_shot": 2,
        },
    }
    out = run_folder / "baseline"
    out.mkdir()
    inputs = {stage: read(run_folder / stage) for stage in ("data", "merge")}
    metrics = baseline.run(Recipe.build(content, run_folder), inputs, out, silent_log())
    return metrics, json.loads((out / "baseline.json").read_text()), out


def read(path: Path) -> Artifact:
    from edgeft.artifact import read_artifact

    return read_artifact(path)


def test_forms_and_their_examples(result: Any) -> None:
    metrics, content, out = result
    forms = {form["form"]: form for form in content["forms"]}
    assert {name: form["n"] for name, form in forms.items()} == {
        "merged": 5, "base_zero_shot": 3, "base_few_shot": 3, "classical": 5,
    }  # fmt: skip
    assert [forms[name]["label"] for name in forms] == [
        "fine-tuned, torch", "base, zero-shot", "base, 2-shot", LINEAR,
    ]  # fmt: skip
    for name, form in forms.items():
        rows = [json.loads(line) for line in (out / form["predictions"]).read_text().splitlines()]
        assert len(rows) == form["n"]
        assert {score["metric"] for score in form["scores"]} == {"exact_match", "label_accuracy"}
        assert metrics[f"{name}_exact_match"] == form["scores"][0]["value"]
    assert forms["merged"]["prompts_too_long"] == 1
    assert metrics["classical_exact_match"] == 1.0


@torch.inference_mode()
def slow_answer(folder: Path, messages: list[dict[str, str]], n: int) -> str:
    """transformers' template and forward pass, one token at a time from scratch."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    new: list[int] = []
    while len(new) < n:
        token = int(model(torch.tensor([ids + new]), use_cache=False).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        new.append(token)
    return str(tokenizer.decode(new, skip_special_tokens=True))


def test_merged_model_answers_as_transformers_does(run_folder: Path, result: Any) -> None:
    rows = [json.loads(line) for line in (result[2] / "predictions-merged.jsonl").read_text().splitlines()]
    asked = [chat(f"light in the {room} please", room)["messages"][:-1] for room in ROOMS]
    assert [row["text"] for row in rows[:4]] == [slow_answer(run_folder / "merge", m, 10) for m in asked]
    assert (rows[4]["text"], rows[4]["finish"]) == ("", "prompt_too_long")


def test_shots_are_earlier_turns_behind_the_system_message() -> None:
    shots = [example("q1", "a1"), example("q2", "a2")]
    turns = baseline._with_shots(example("q", "a"), shots)
    assert [(m["role"], m["content"]) for m in turns] == [
        ("system", "You are a home."),
        ("user", "q1"), ("assistant", "a1"),
        ("user", "q2"), ("assistant", "a2"),
        ("user", "q"),
    ]  # fmt: skip


def test_shots_that_do_not_fit_are_left_out(run_folder: Path) -> None:
    content = {"name": "t", "model": {"base": "base"}, "train": {}, "bench": {"max_new_tokens": 10}}
    content["data"] = {"train": "t", "validation": "v", "test": "s"}
    recipe = Recipe.build(content, run_folder)
    model = AutoModelForCausalLM.from_pretrained(run_folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(run_folder / "base")
    asker = baseline._Asker(model, tokenizer, recipe, silent_log())
    short, long = example("a light", "hall"), example("a light " * 200, "hall")
    lengths = [len(asker._prompt(short, [short] * count)) for count in (0, 1, 2)]
    assert lengths[0] < lengths[1] < lengths[2]
    assert len(asker._prompt(short, [short, long])) == lengths[1]
    assert len(asker._prompt(short, [long, short])) == lengths[0]


def test_few_labels_are_classified() -> None:
    train = [example(f"switch the {room} lamp number {i}", room) for room in ROOMS for i in range(5)]
    test = [example(f"{room} lamp", room) for room in ROOMS]
    assert classical_answers(train, test, 0) == (LINEAR, list(ROOMS))


def test_many_answers_are_looked_up() -> None:
    train = [example(f"wake me at {i} o'clock", f'{{"hour": {i}}}') for i in range(1, 13)]
    method, answers = classical_answers(train, [example("wake me at 7", "")], 0)
    assert (method, answers) == (NEAREST, ['{"hour": 7}'])


def test_one_answer_only() -> None:
    train = [example(f"q {i}", "yes") for i in range(4)]
    assert classical_answers(train, train[:2], 0)[1] == ["yes", "yes"]
