"""Probabilities of answers: a float64 formula over scripted logits, and transformers on a real file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgeft import runtime
from edgeft.bench.accuracy import Scoring, evaluate
from edgeft.bench.examples import Example
from edgeft.bench.perplexity import answer_log_probs, perplexity_score, reference_ids
from edgeft.console import silent_log
from edgeft.errors import UsageError
from edgeft.export.gguf.write import write_gguf
from tests.bench.fake_model import FakeModel
from tests.tiny import make_tiny_llama

CONVERSATION = ({"role": "user", "content": "turn on the light"},)
ANSWER = {"role": "assistant", "content": "the kitchen light"}


class Likely(FakeModel):
    """A fake whose logits are noise, the same for the same ids; its end tokens are 0 and 1."""

    def __init__(self, answers: dict[str, str]) -> None:
        super().__init__(answers)
        self.n_vocab, self.eos_ids = 128, frozenset({0, 1})

    def render(self, messages: Sequence[Any], *, tools: Any = None, add_generation_prompt: bool = True) -> str:
        text = super().render(messages, tools=tools)
        return text if add_generation_prompt else text.removesuffix("a:").removesuffix("\n") + "\0\n"

    def score(self, ids: Sequence[int]) -> np.ndarray:
        return np.random.default_rng(list(ids)).normal(0, 3, (len(ids), self.n_vocab)).astype(np.float32)


@pytest.mark.parametrize("ended", [True, False])
def test_log_probs_are_the_formula(ended: bool) -> None:
    model, prompt, answer = Likely({}), [5, 6, 7], [8, 9]
    logs = log_softmax(model.score([*prompt, *answer]).astype(np.float64), axis=1)
    expected = [logs[2, 8], logs[3, 9], *([np.log(np.exp(logs[4, 0]) + np.exp(logs[4, 1]))] if ended else [])]
    assert answer_log_probs(model, prompt, answer, ended=ended) == pytest.approx(expected, abs=1e-12)


def test_perplexity_weighs_tokens_not_examples() -> None:
    score = perplexity_score([(1.0, 1), None, (6.0, 3)])
    assert score is not None
    assert score.value == pytest.approx(np.exp(7 / 4))
    assert (score.n, score.detail) == (2, {"tokens": 4.0})
    assert score.ci95 == pytest.approx((np.exp(1), np.exp(2)))
    assert perplexity_score([None]) is None


def test_scores_that_need_probabilities() -> None:
    model = Likely({"q1": "yes", "q2": "no"})
    examples = [Example(({"role": "user", "content": q},), a) for q, a in (("q1", "yes"), ("q2", "off"))]
    scoring = Scoring(["exact_match", "perplexity", "ece"], abstain_below=0.5)
    result = evaluate(model, examples, scoring, max_new_tokens=8, log=silent_log())
    nll = [-sum(_answer(model, example.prompt, example.answer)) for example in examples]
    assert result.values()["perplexity"] == pytest.approx(np.exp(sum(nll) / (4 + 4)))
    own = np.exp([sum(_answer(model, examples[0].prompt, "yes")), sum(_answer(model, examples[1].prompt, "no"))])
    assert [answer.confidence for answer in result.answers] == pytest.approx(own.tolist())
    assert result.to_json()["reliability"][0]["n"] == 2
    assert result.predictions()[1]["log_prob"] == pytest.approx(np.log(own[1]))


def _answer(model: Likely, prompt: Sequence[Any], text: str) -> list[float]:
    return answer_log_probs(model, model.tokenize(model.render(prompt)), model.tokenize(text), ended=True)


def test_a_backend_without_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(FakeModel, "score")
    examples = [Example(({"role": "user", "content": "q"},), "a")]
    with pytest.raises(UsageError, match="cannot say how likely a text is: leave out perplexity"):
        evaluate(FakeModel({"q": "a"}), examples, Scoring(["perplexity"]), max_new_tokens=4, log=silent_log())


def test_real_file_equals_transformers(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "model")
    write_gguf(folder, tmp_path / "tiny.gguf", ftype="F32", name="tiny", provenance={}, log=silent_log())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(list(CONVERSATION), add_generation_prompt=True, return_dict=False)
    answer = tokenizer(ANSWER["content"]).input_ids
    ids = torch.tensor([[*prompt, *answer]])
    labels = ids.clone()
    labels[:, : len(prompt)] = -100
    with torch.inference_mode():
        output = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids, labels=labels)
    with runtime.load(tmp_path / "tiny.gguf", n_ctx=128, n_threads=1) as model:
        assert reference_ids(model, CONVERSATION, ANSWER, None) == answer
        *found, end = answer_log_probs(model, prompt, answer, ended=True)
        ends = sorted(model.eos_ids)
    assert -np.mean(found) == pytest.approx(output.loss.item(), abs=2e-3)
    assert tokenizer.eos_token_id in ends
    assert end == pytest.approx(
        np.log(output.logits[0, -1].softmax(0)[ends].sum().item()), abs=2e-3
    )  # keys and values are F16


def test_a_template_that_writes_something_before_the_answer_has_no_reference() -> None:
    class Thinks(Likely):
        def render(self, messages: Sequence[Any], *, tools: Any = None, add_generation_prompt: bool = True) -> str:
            text = super().render(messages, add_generation_prompt=add_generation_prompt)
            return f"{text}<think>" if add_generation_prompt else text

    assert reference_ids(Likely({}), CONVERSATION, ANSWER, None) == [ord(c) for c in ANSWER["content"]]
    assert reference_ids(Thinks({}), CONVERSATION, ANSWER, None) is None
