"""Probabilities of answers, from the teacher-forced logits of the runtime itself (`Model.score`).

Shapes: T tokens of a sequence, V entries of the vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeft.bench.scores import Score
from edgeft.bench.statistics import bootstrap_interval


def answer_log_probs(model: Any, prompt: Sequence[int], answer: Sequence[int], *, ended: bool) -> list[float]:
    """Natural-log probability of each token of `answer` after `prompt` under `model`, and, if `ended`, of stopping.

    To stop is to give any of the model's end tokens, so their probabilities add up. Computed in float64 from the
    float32 logits.
    """
    logits = model.score([*prompt, *answer])[len(prompt) - 1 :].astype(np.float64)  # (answer + 1, V)
    peaks = logits.max(axis=1)
    totals = peaks + np.log(np.exp(logits - peaks[:, None]).sum(axis=1))
    found = [float(logits[row, token] - totals[row]) for row, token in enumerate(answer)]
    if ended:
        ends = logits[-1, sorted(model.eos_ids)] - totals[-1]
        found.append(float(np.logaddexp.reduce(ends)))
    return found


def reference_ids(
    model: Any, prompt: Sequence[Mapping[str, Any]], reply: Mapping[str, Any], tools: Any
) -> list[int] | None:
    """Tokens of the reference answer as the model's template writes it, without end token.

    None where the template does not write an answer behind the prompt it asks with (one that adds reasoning, say):
    such an example has no answer to look up.
    """
    asked = model.render(list(prompt), tools=tools)
    whole = model.render([*prompt, reply], tools=tools, add_generation_prompt=False)
    if not whole.startswith(asked):
        return None
    ids: list[int] = model.tokenize(whole)
    start = model.tokenize(asked)
    if ids[: len(start)] != start:  # the last characters of the prompt and the first of the answer are one token
        return None
    answer = ids[len(start) :]
    end = next((place for place, token in enumerate(answer) if token in model.eos_ids), None)
    return None if end is None else answer[:end]


def perplexity_score(nll: Sequence[tuple[float, int] | None]) -> Score | None:
    """Perplexity of the reference answers, end token included: exp(Σ -ln p / number of tokens).

    `nll` holds, by example, the sum of -ln p in nats and the tokens it is over, None where not measured. The interval
    is a bootstrap over examples. Outcomes are None: an example is not right or wrong.
    """
    counted = np.array([each for each in nll if each is not None], dtype=np.float64).reshape(-1, 2)
    if not len(counted):
        return None

    def value(drawn: np.ndarray) -> float:
        total, tokens = counted[drawn].sum(axis=0)
        return math.exp(total / tokens)

    return Score(
        metric="perplexity",
        value=value(np.arange(len(counted))),
        n=len(counted),
        ci95=bootstrap_interval(len(counted), value),
        interval="bootstrap",
        outcomes=(None,) * len(nll),
        detail={"tokens": float(counted[:, 1].sum())},
    )
