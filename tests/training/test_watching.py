"""Task evaluation, canary text and reporters."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgeft.data.rendering import encode_chat, encode_prompt
from edgeft.errors import MissingExtra, TrainingError
from edgeft.sections import Lora
from edgeft.training.adapters import attach_lora
from edgeft.training.attention import use_packed_attention
from edgeft.training.batches import Batch, TokenSet
from edgeft.training.generation import find_stop_ids
from edgeft.training.models import load_model
from edgeft.training.reporting import open_reporters
from edgeft.training.watching import TaskEvaluation, canary_loss, canary_tokens
from tests.tiny import make_tiny_llama
from tests.training.bigram import bigram_loss_sum, train_bigram
from tests.training.test_loop_failures import Say

TALK = [("turn on the light", "on"), ("play music", '{"tool": "music"}'), ("set a timer for ten minutes", "timer 10")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def conversations() -> list[list[dict[str, str]]]:
    single = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in TALK]
    return [*single, [*single[0], *single[1]]]  # the last of two turns is the answer


class Asked:
    """A scorer that remembers what it was given."""

    def __call__(self, predictions: Sequence[str], references: Sequence[str]) -> Mapping[str, float]:
        self.predictions, self.references = list(predictions), list(references)
        return {"exact_match": 0.25}


def test_answers_equal_greedy_decoding_one_by_one(folder: Path, tokenizer: Any) -> None:
    """Oracle: the largest logit after the whole conversation so far, in transformers, no cache, no padding.

    The model in training attends to packed rows, has dropout and an adapter that is not zero.
    """
    tokens = TokenSet.build([encode_chat(tokenizer, talk) for talk in conversations()])
    score = Asked()
    task = TaskEvaluation.of(tokens, tokenizer, score, examples=9, max_new_tokens=12)
    assert task.prompts == [encode_prompt(tokenizer, talk[:-1]) for talk in conversations()]
    model = load_model(folder)
    use_packed_attention(model)
    adapted = attach_lora(model, Lora(r=4, lora_dropout=0.5))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    adapted.train()
    packed = model.config._attn_implementation
    assert task(adapted) == {"exact_match": 0.25}
    assert adapted.training
    assert model.config._attn_implementation == packed

    stops = find_stop_ids(tokenizer, model)
    merged = adapted.merge_and_unload()
    merged.set_attn_implementation("eager")
    merged.eval()
    expected = []
    for prompt, limit in zip(task.prompts, task.limits, strict=True):
        ids = list(prompt)
        with torch.inference_mode():
            while len(ids) - len(prompt) < limit:
                ids.append(int(merged(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
                if ids[-1] in stops:
                    break
        expected.append(tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip())
    assert score.predictions == expected
    assert score.references == [talk[-1]["content"] for talk in conversations()]


def test_only_so_many_examples_and_those_with_an_answer(tokenizer: Any) -> None:
    nothing = ([1, 2, 3], [False] * 3)
    everything = ([1, 2, 3], [True] * 3)  # plain text: no prompt to answer
    encoded = [nothing, everything, *(encode_chat(tokenizer, talk) for talk in conversations())]
    task = TaskEvaluation.of(TokenSet.build(encoded), tokenizer, Asked(), examples=2, max_new_tokens=3)
    assert task.references == ["on", '{"tool": "music"}']
    assert task.limits == [3, 3]
    assert TaskEvaluation.of(TokenSet.build(encoded), tokenizer, Asked(), examples=0, max_new_tokens=3)(None) == {}


def test_canary_loss_equals_transformers(folder: Path, tokenizer: Any) -> None:
    """Oracle: transformers' own loss, example by example, weighted by the tokens it is a mean of."""
    tokens = canary_tokens(tokenizer, 200)
    model = AutoModelForCausalLM.from_pretrained(folder)
    total, count = 0.0, 0
    with torch.no_grad():
        for start, end in zip(tokens.offsets, tokens.offsets[1:], strict=False):
            ids = torch.tensor(tokens.input_ids[start:end].astype("int64"))[None]
            total += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
    assert 1_000 < count < 4_100
    use_packed_attention(model)
    assert canary_loss(model, tokens) == pytest.approx(total / count, rel=1e-5)


class FakeWriter:
    """torch.utils.tensorboard.SummaryWriter, as far as it is used."""

    made: list[Any] = []  # noqa: RUF012

    def __init__(self, folder: str, purge_step: int | None = None) -> None:
        self.folder, self.purge_step, self.scalars, self.closed = folder, purge_step, [], False
        FakeWriter.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def close(self) -> None:
        self.closed = True


class FakeMlflow:
    """The fluent API of mlflow, as far as it is used."""

    def __init__(self, broken_after: int = 10**9) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.left = broken_after

    def start_run(self, run_id: str | None = None, run_name: str | None = None) -> Any:
        self.calls.append(("start", run_id, run_name))
        if run_name == "refused":
            raise RuntimeError("no route to host")
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "run-1"))

    def log_params(self, parameters: dict[str, Any]) -> None:
        self.calls.append(("params", parameters))

    def log_metrics(self, numbers: dict[str, float], step: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("service unavailable")
        self.calls.append(("metrics", numbers, step))

    def end_run(self, status: str) -> None:
        self.calls.append(("end", status))


def test_numbers_go_to_tensorboard_and_mlflow(tmp_path: Path) -> None:
    FakeWriter.made.clear()
    mlflow = FakeMlflow()
    modules = {"torch.utils.tensorboard": SimpleNamespace(SummaryWriter=FakeWriter), "mlflow": mlflow}
    for _ in range(2):  # the second time a resumed run
        with open_reporters(
            ["tensorboard", "mlflow"], folder=tmp_path, run_name="demo", log=Say(), parameters={"r": 16},
            load=modules.__getitem__,
        ) as reporters:  # fmt: skip
            for report in reporters:
                report(3, {"loss": 2.0, "lr": 0.1})
    first, second = FakeWriter.made
    assert first.folder == str(tmp_path / "tensorboard")
    assert first.scalars == [("train/loss", 2.0, 3), ("train/lr", 0.1, 3)]
    assert (first.purge_step, first.closed, second.purge_step) == (3, True, 3)
    assert mlflow.calls == [
        ("start", None, "demo"), ("params", {"r": 16}), ("metrics", {"loss": 2.0, "lr": 0.1}, 3), ("end", "FINISHED"),
        ("start", "run-1", None), ("metrics", {"loss": 2.0, "lr": 0.1}, 3), ("end", "FINISHED"),
    ]  # fmt: skip


def test_a_failing_run_is_marked_and_a_failing_service_is_left_out(tmp_path: Path) -> None:
    mlflow, log = FakeMlflow(broken_after=2), Say()

    def fails_at_step_six(model: Any, batch: Batch) -> torch.Tensor:
        if model.training and len((tmp_path / "log.jsonl").read_text().splitlines()) == 5:
            raise KeyError
        return bigram_loss_sum(model, batch)

    with (
        pytest.raises(KeyError),
        open_reporters(["mlflow"], folder=tmp_path, run_name="demo", log=log, load=lambda name: mlflow) as reporters,
    ):
        train_bigram(tmp_path, reporters=reporters, log=log, loss_sum=fails_at_step_six)
    assert [call[0] for call in mlflow.calls] == ["start", "params", "metrics", "metrics", "end"]
    assert mlflow.calls[-1] == ("end", "FAILED")
    assert [line for line in log.lines if "mlflow" in line] == [
        "mlflow fails (service unavailable); training goes on without it, log.jsonl is complete"
    ]


def no_such_module(name: str) -> Any:
    raise ModuleNotFoundError(name=name)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_missing_package_is_named(name: str, tmp_path: Path) -> None:
    with (
        pytest.raises(MissingExtra, match=rf"report_to: the Python package {name} .*pip install {name}"),
        open_reporters([name], folder=tmp_path, run_name="demo", log=Say(), load=no_such_module),
    ):
        pass


def test_mlflow_that_refuses(tmp_path: Path) -> None:
    with (
        pytest.raises(TrainingError, match=r"MLflow refuses the run .no route to host.; look at MLFLOW_TRACKING_URI"),
        open_reporters(["mlflow"], folder=tmp_path, run_name="refused", log=Say(), load=lambda name: FakeMlflow()),
    ):
        pass


def test_real_tensorboard(tmp_path: Path) -> None:
    """Oracle: tensorboard's own reader of event files."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_reporters(["tensorboard"], folder=tmp_path, run_name="demo", log=Say()) as reporters:
        _, result = train_bigram(tmp_path, reporters=reporters)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, result.steps + 1))
    assert events.Scalars("train/loss")[-1].value == pytest.approx(result.last_loss)
