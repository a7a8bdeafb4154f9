"""Choosing among labels by the probability of each, all of them scored behind one prompt.

Shapes: T tokens of a label, V entries of the vocabulary.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgeft.errors import ContextOverflow, UsageError
from edgeft.runtime.model import Classification
from edgeft.runtime.prefix_cache import common_length
from edgeft.runtime.run import Run

if TYPE_CHECKING:
    from edgeft.runtime.base import TextModel


def label_scores(model: "TextModel", run: Run, labels: Sequence[Sequence[int]]) -> list[float]:
    """Log-probability, natural, that the answer to the prompt of `run` is exactly each label (ids), then ends.

    Any of the model's end tokens may end it. The prompt is run once, and so is what labels begin with in common: in
    sorted order the label before shares more with the next one than any other does. In one's turn.
    """
    rows = [_log_softmax(model.prompt_logits(run))]  # rows[t]: what comes behind t tokens of the label
    scores = dict.fromkeys(map(tuple, labels), 0.0)
    ends = sorted(model.eos_ids)
    before: tuple[int, ...] = ()
    for label in sorted(scores):
        n_common = common_length(before, label)
        if n_common < len(before):
            model.keep(run.n_prompt + n_common)
        del rows[n_common + 1 :]
        rows += [_log_softmax(row) for row in model.logits_behind(label[n_common:])]
        end = float(np.logaddexp.reduce(rows[-1][ends])) if ends else 0.0
        scores[label] = end + sum(float(rows[t][token]) for t, token in enumerate(label))
        before = label
    return [scores[tuple(label)] for label in labels]


def label_ids(model: "TextModel", prompt: str, prompt_ids: Sequence[int], labels: Sequence[str]) -> list[list[int]]:
    """The tokens of each label behind the prompt.

    Raises UsageError for labels that cannot be told apart, ContextOverflow where one does not fit.
    """
    if not labels or isinstance(labels, str):
        raise UsageError("labels: give a list of at least one label")
    found = []
    for label in labels:
        whole = model.tokenize(prompt + label)
        n = len(prompt_ids)
        found.append(whole[n:] if whole[:n] == list(prompt_ids) else model.tokenize(label))
        if not found[-1]:
            raise UsageError(f"labels: {label!r} has no tokens; leave it out")
    if len(set(map(tuple, found))) < len(found):
        raise UsageError("labels: two of them are the same to the model; leave one out")
    longest = len(prompt_ids) + max(map(len, found))
    if longest > model.n_ctx:
        raise ContextOverflow(
            f"prompt and label of {longest} tokens do not fit the context of {model.n_ctx}; shorten the text"
        )
    return found


def classification(
    labels: Sequence[str],
    scores: Sequence[float],
    lengths: Sequence[int],
    *,
    normalize: Literal["sum", "mean"],
    temperature: float,
    threshold: float,
) -> Classification:
    """From log-probabilities and the numbers of tokens they are of; see `Model.classify`. Raises UsageError."""
    if normalize not in ("sum", "mean") or not temperature > 0 or not 0 <= threshold <= 1:
        raise UsageError(
            f"normalize {normalize!r}, temperature {temperature}, threshold {threshold}: "
            "need 'sum' or 'mean', temperature > 0 and a threshold of 0 to 1"
        )
    if normalize == "mean":
        scores = [score / length for score, length in zip(scores, lengths, strict=True)]
    best = max(scores)
    weights = [math.exp((score - best) / temperature) for score in scores]
    shares = {label: weight / sum(weights) for label, weight in zip(labels, weights, strict=True)}
    ordered = dict(sorted(shares.items(), key=lambda item: -item[1]))
    first, probability = next(iter(ordered.items()))
    return Classification(first if probability >= threshold else None, ordered)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural log-probabilities (V,), float64."""
    values = logits.astype(np.float64)
    values -= values.max()
    return values - math.log(np.exp(values).sum())
