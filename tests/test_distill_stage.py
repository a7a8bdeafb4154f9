"""The distill stage: every kind of teacher and student, resuming, sharing the cache, what does not go together."""

import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgeft.artifact import Artifact, write_manifest
from edgeft.console import silent_log, terminal_log
from edgeft.errors import ModelError, RecipeError
from edgeft.plan import steps_of
from edgeft.recipe import Recipe
from edgeft.recipe_reader import read_recipe
from edgeft.stages import data, distill
from edgeft.training import loop
from edgeft.training.models import load_model
from tests.tiny import make_tiny_llama, tiny_tokenizer

COLOURS = ("red", "green", "blue", "black")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distill-stage")
    make_tiny_llama(folder / "base", initializer_range=0.3)
    make_tiny_llama(folder / "small", hidden_size=32, num_attention_heads=2, num_key_value_heads=1, seed=1)
    make_tiny_llama(folder / "foreign", vocab_size=300, seed=2)
    for split, numbers in {"train": range(16), "validation": range(4), "test": range(20, 24)}.items():
        rows = [{"messages": _turns(f"colour {i}", COLOURS[i % 4])} for i in numbers]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _recipe(folder: Path, section: dict[str, Any], **train: Any) -> Recipe:
    content = {
        "name": "t",
        "model": {"base": "base"},
        "data": {**{name: f"{name}.jsonl" for name in ("train", "validation", "test")}, "max_length": 64},
        "train": {"batch_tokens": 128, "num_threads": 1, "torch_dtype": "float32", **train},
        "distill": {"num_train_epochs": 2, "batch_tokens": 128, **section},
    }
    path = folder / f"recipe-{abs(hash(json.dumps(content)))}.yaml"
    path.write_text(json.dumps(content))
    return read_recipe(path)


def _inputs(folder: Path, recipe: Recipe, root: Path) -> dict[str, Artifact]:
    """The data stage's artifact, and the base as if merge had made it."""
    prepared = root / "data"
    if not prepared.exists():
        prepared.mkdir(parents=True)
        data.run(recipe, {}, prepared, silent_log())
        make_tiny_llama(root / "merge", initializer_range=0.3)
        (root / "merge" / "provenance.json").write_text('{"base": "base", "seed": 42}')
    return {
        "data": write_manifest(prepared, "data", "key", {}),
        "merge": write_manifest(root / "merge", "merge", "key", {}),
    }


def _distill(folder: Path, root: Path, section: dict[str, Any], name: str = "out", **train: Any) -> dict[str, float]:
    recipe = _recipe(folder, section, **train)
    out = root / name
    out.mkdir(exist_ok=True)
    return distill.run(recipe, _inputs(folder, recipe, root), out, silent_log())


CUT = {"student": {"num_hidden_layers": 1, "intermediate_size": 64}, "num_train_epochs": 6, "kd_ratio": 1.0}
CASES: dict[str, dict[str, Any]] = {
    "cut": CUT,
    "cut, all logits": {**CUT, "top_k": None},
    "another base": {"student": {"base": "small"}, "beta": 0.5, "temperature": 2.0, "top_k": 8},
    "hidden states": {"student": {"base": "small"}, "hidden_weight": 0.1},
    "own answers": {"student": {"base": "small"}, "lmbda": 0.5, "beta": 1.0, "max_new_tokens": 4},
    "a larger teacher": {"teacher": "base", "skew_alpha": 0.1},
    "its answers": {"student": {"base": "small"}, "seq_kd": True, "max_new_tokens": 8},
    "a foreign teacher's answers": {"teacher": "foreign", "seq_kd": True, "max_new_tokens": 8},
}


@pytest.mark.parametrize("name", CASES)
def test_a_student_comes_out(folder: Path, tmp_path: Path, name: str) -> None:
    metrics = _distill(folder, tmp_path, CASES[name])
    student = load_model(tmp_path / "out")
    assert sum(p.numel() for p in student.parameters()) == metrics["student_parameters"]
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (
        tmp_path / "data" / "tokenizer" / "tokenizer.json"
    ).read_bytes()
    assert not [key for key in load_file(tmp_path / "out" / "model.safetensors") if "distill" in key]
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["base"] == "base"
    assert len(provenance["teacher_sha256"]) == 64
    if name == "a foreign teacher's answers":
        assert "kl_to_teacher_after" not in metrics
    elif name in ("cut", "cut, all logits"):
        assert metrics["kl_to_teacher_after"] < metrics["kl_to_teacher_before"]
    logged = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged if "loss" in row] == list(range(1, int(metrics["steps"]) + 1))


@pytest.mark.parametrize("section", [CUT, {"student": {"base": "small"}, "seq_kd": True, "max_new_tokens": 8}])
def test_the_teacher_answers_what_has_no_answer(folder: Path, tmp_path: Path, section: dict[str, Any]) -> None:
    """Sixteen examples with an answer, eight without: the student learns from all, of the last what the teacher says,
    which transformers' own greedy generation says too."""
    asked = [f"shade {i}" for i in range(8)]
    rows = [{"messages": _turns(text, "")[:1]} for text in asked]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = _recipe(folder, section | {"max_new_tokens": 8})
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"unlabelled": "asked.jsonl"})})
    inputs = _inputs(folder, recipe, tmp_path)
    (tmp_path / "out").mkdir()
    said = io.StringIO()
    distill.run(recipe, inputs, tmp_path / "out", terminal_log(said))
    assert f"distill: {16 + 8} examples" in said.getvalue()
    records = [json.loads(line) for path in tmp_path.glob("teacher-answers-*.jsonl") for line in path.open()]
    answers = {record["question"]["messages"][-1]["content"]: record["answer"] for record in records}
    assert set(asked) <= set(answers)
    assert len(answers) == (24 if section.get("seq_kd") else 8)
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "data" / "tokenizer")
    ids = tokenizer.apply_chat_template(rows[3]["messages"], add_generation_prompt=True, return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merge", dtype=torch.float32)
    told = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert answers[asked[3]] == tokenizer.decode(told, skip_special_tokens=True).strip()


def test_the_cached_teacher_teaches_what_the_live_one_does(folder: Path, tmp_path: Path) -> None:
    """With every token kept, the loss of each step is that of the whole distribution but for rounding."""
    losses = []
    for name, top_k in (("cached", 400), ("live", None)):
        _distill(folder, tmp_path, {**CUT, "top_k": top_k}, name)
        rows = (json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines())
        losses.append([row["loss"] for row in rows if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_a_killed_run_goes_on_to_the_same_bits(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = {"student": {"base": "small"}, "lmbda": 0.5, "max_new_tokens": 4, "num_train_epochs": 3}
    _distill(folder, tmp_path, section, "whole", save_steps=2)
    taken, step = [], loop._Run.train_step

    def power_cut(self: Any, *rest: Any) -> Any:
        taken.append(self.keeper.step)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return step(self, *rest)

    monkeypatch.setattr(loop._Run, "train_step", power_cut)
    with pytest.raises(KeyboardInterrupt):
        _distill(folder, tmp_path, section, "cut", save_steps=2)
    _distill(folder, tmp_path, section, "cut", save_steps=2)
    assert taken[3:5] == [3, 2]
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_trials_share_the_teacher(folder: Path, tmp_path: Path) -> None:
    _distill(folder, tmp_path, {**CUT, "top_k": 16}, "first")
    caches = sorted(tmp_path.glob("teacher-*"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.bin")}
    assert len(caches) == 2  # training and validation examples
    _distill(folder, tmp_path, {**CUT, "top_k": 16, "beta": 0.5, "kd_ratio": 0.3, "learning_rate": 1e-2}, "second")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.bin")} == before
    assert sorted(tmp_path.glob("teacher-*")) == caches


def test_a_teacher_with_a_padded_head_teaches_the_same(folder: Path, tmp_path: Path) -> None:
    """Rows behind the tokenizer's tokens, as large models of a family have them, change no bit."""
    padded = load_model(make_tiny_llama(folder / "padded", initializer_range=0.3))
    padded.resize_token_embeddings(padded.config.vocab_size + 128, mean_resizing=False)
    padded.save_pretrained(folder / "padded")
    for name in ("base", "padded"):
        _distill(folder, tmp_path, {"teacher": name, "student": {"base": "small"}}, name)
    plain, wide = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "padded"))
    assert all(torch.equal(plain[name], wide[name]) for name in plain)


def test_scores_of_student_and_teacher(folder: Path, tmp_path: Path) -> None:
    metrics = _distill(folder, tmp_path, CUT, eval_examples=4)
    assert {"exact_match_before", "exact_match_after", "teacher_exact_match", "cache_kl"} <= metrics.keys()


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (
            {"teacher": "foreign"},
            r"the teacher's tokens are not the student's: .* tokens differ, such as .* Set distill\.seq_kd: true",
        ),
        ({"student": {"base": "foreign"}}, r"distill\.student\.base: its tokens are not those of the prepared data"),
        ({"teacher": "foreign", "seq_kd": True, "lmbda": 0.5}, "need a teacher with the student's tokenizer"),
        ({"teacher": "foreign", "seq_kd": True, "student": {"num_hidden_layers": 1}}, r"make the teacher's folder"),
        ({"teacher": "nowhere"}, r"distill\.teacher: .*nowhere"),
    ],
)
def test_what_does_not_go_together(folder: Path, tmp_path: Path, section: dict[str, Any], expected: str) -> None:
    with pytest.raises(ModelError, match=expected):
        _distill(folder, tmp_path, section)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({}, "give `student`, a smaller model to teach, or `teacher`"),
        ({"student": {}}, "give `base`, a model folder, or what to cut from the teacher"),
        ({"teacher": "a", "teacher_api": {"base_url": "http://x", "model": "m"}}, "not both"),
        ({"teacher": "a", "beta": 0.5, "skew_alpha": 0.1}, "skew_alpha skews the KL of beta 0 or 1"),
        ({"teacher": "a", "top_k": 0}, "top_k must be at least 1"),
        ({"teacher_api": {"base_url": "http://x", "model": "m"}, "lmbda": 0.5}, "hidden_weight and lmbda need"),
        ({"teacher_api": {"base_url": "http://x", "model": "m", "max_cost": 1.0}}, "max_cost needs input_price"),
        (
            {"teacher_api": {"base_url": "http://x", "model": "m", "top_logprobs": 5}, "temperature": 2.0},
            "top_logprobs are of temperature 1",
        ),
        (
            {"teacher_api": {"base_url": "http://x", "model": "m"}, "student": {"num_hidden_layers": 1}},
            "a student cannot be cut from a teacher over an API",
        ),
    ],
)
def test_sections_that_make_no_sense(folder: Path, section: dict[str, Any], expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        _recipe(folder, section)


def test_an_encoder_is_not_distilled(folder: Path) -> None:
    with pytest.raises(RecipeError, match="only a language model that `train` makes can be distilled"):
        _recipe(folder, {"teacher": "base"}, objective="classification")


def test_the_road_leads_through_it(folder: Path) -> None:
    steps = {step.stage: step for step in steps_of(_recipe(folder, CUT))}
    assert steps["distill"].reads == ("data", "merge")
    assert "distill" in steps["export"].reads
    assert "merge" not in steps["export"].reads


class _Colours(BaseHTTPRequestHandler):
    """Answers every question with `blue`, and says how likely that was."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        pieces = [{"token": t, "logprob": -0.1, "top_logprobs": [{"token": t, "logprob": -0.1}]} for t in PIECES]
        choice = {"message": {"content": "blue"}, "finish_reason": "stop", "logprobs": {"content": pieces}}
        body = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


PIECES: list[str] = []


@pytest.mark.parametrize("top_logprobs", [0, 2])
def test_a_teacher_over_an_api(folder: Path, tmp_path: Path, top_logprobs: int) -> None:
    tokenizer = tiny_tokenizer()
    PIECES[:] = [tokenizer.decode([i]) for i in tokenizer("blue", add_special_tokens=False).input_ids]
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Colours)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    api = {"base_url": url, "model": "big", "top_logprobs": top_logprobs, "input_price": 1.0}
    try:
        metrics = _distill(folder, tmp_path, {"teacher_api": api, "num_train_epochs": 8, "learning_rate": 3e-3})
    finally:
        server.shutdown()
        server.server_close()
    assert metrics["train_loss"] < metrics["first_loss"]
    assert metrics["teacher_cost"] == pytest.approx(16 * 9 * 1e-6)
    (answers,) = tmp_path.glob("teacher-answers-*.jsonl")
    assert len(answers.read_text().splitlines()) == 16  # the validation questions are among them
