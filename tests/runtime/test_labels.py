"""Scored labels: transformers' log-probabilities are the oracle."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from edgeft.errors import ContextOverflow, UsageError
from edgeft.runtime import Model
from edgeft.runtime.labels import classification

LABELS = ["lights", "lights on", "music", "weather", "light", "lamp 12", "ü", "music"[:3]]
TEXT = "turn on the kitchen light"


def log_probability(theirs: Any, prompt: list[int], label: list[int], ends: list[int]) -> float:
    with torch.inference_mode():
        logits = theirs(torch.tensor([prompt + label])).logits[0].double()
    rows = torch.log_softmax(logits, -1)[len(prompt) - 1 :]
    tokens = sum(rows[t, token].item() for t, token in enumerate(label))
    return tokens + torch.logsumexp(rows[-1][ends], 0).item()


@pytest.mark.parametrize(("normalize", "n_times"), [("sum", 1), ("mean", 1), ("sum", 90)])
def test_probabilities_are_those_of_transformers(
    either: Model, theirs: Any, tokenizer: Any, normalize: Any, n_times: int
) -> None:
    """90 times the text is a prompt of more than one batch."""
    text = TEXT * n_times
    chat = [{"role": "system", "content": "Name the topic."}, {"role": "user", "content": text}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    labels = [tokenizer(label).input_ids for label in LABELS]
    scores = np.array([log_probability(theirs, prompt, label, sorted(either.eos_ids)) for label in labels])
    if normalize == "mean":
        scores /= [len(label) + 1 for label in labels]
    expected = np.exp(scores / 3) / np.exp(scores / 3).sum()
    found = either.classify(text, LABELS, system="Name the topic.", normalize=normalize, temperature=3.0)
    assert [found.probabilities[label] for label in LABELS] == pytest.approx(expected, rel=0.02)
    assert list(found.probabilities.values()) == sorted(found.probabilities.values(), reverse=True)
    assert found.label == LABELS[int(expected.argmax())]


def test_the_order_of_labels_and_earlier_calls_change_nothing(either: Model) -> None:
    once = either.classify(TEXT, LABELS)
    again = either.classify(TEXT, LABELS[::-1])
    assert once.probabilities == again.probabilities
    assert sum(once.probabilities.values()) == pytest.approx(1)


def test_calibration_and_threshold() -> None:
    def choose(**options: Any) -> Any:
        settings: Any = {"normalize": "sum", "temperature": 1.0, "threshold": 0.0} | options
        return classification(["a", "b"], [math.log(0.2), math.log(0.6)], [1, 3], **settings)

    assert choose().probabilities == pytest.approx({"b": 0.75, "a": 0.25})
    assert choose(temperature=0.5).probabilities == pytest.approx({"b": 0.9, "a": 0.1})
    assert choose(normalize="mean").probabilities == pytest.approx(
        {"b": 0.6 ** (1 / 3) / (0.6 ** (1 / 3) + 0.2), "a": 0.2 / (0.6 ** (1 / 3) + 0.2)}
    )
    assert choose(threshold=0.74).label == "b"
    assert choose(threshold=0.76).label is None
    for wrong in ({"normalize": "max"}, {"temperature": 0.0}, {"threshold": 1.5}, {"temperature": math.nan}):
        with pytest.raises(UsageError, match="need 'sum' or 'mean'"):
            choose(**wrong)


@pytest.mark.parametrize(
    ("labels", "message"),
    [([], "at least one"), ("yes", "give a list"), (["a", ""], "has no tokens"), (["a", "a"], "are the same")],
)
def test_labels_that_make_no_sense(either: Model, labels: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        either.classify(TEXT, labels)


def test_a_label_that_does_not_fit(either: Model) -> None:
    with pytest.raises(ContextOverflow, match="prompt and label of"):
        either.classify("a", ["b", "c" * 2000])
