"""What is measured of a model beside its loss: answers to validation examples, and general text it may forget.

Shapes: n examples, T tokens of one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from edgeft.training.attention import unpacked_attention
from edgeft.training.batches import Examples, TokenSet
from edgeft.training.generation import find_stop_ids, generate_greedily
from edgeft.training.loop import LoopConfig, mean_loss
from edgeft.training.losses import next_token_loss_sum

Scorer = Callable[[Sequence[str], Sequence[str]], Mapping[str, float]]
"""Named numbers of predictions (n,) against references (n,)."""

CANARY = "canary.txt"


@dataclass(frozen=True)
class TaskEvaluation:
    """Answers validation prompts greedily and scores the answers; a `loop.Watch`.

    `prompts` are the ids in front of each answer, `references` the texts wanted, `limits` the tokens an answer may
    have; `score` gives the metrics by their names.
    """

    prompts: list[list[int]]
    references: list[str]
    limits: list[int]
    tokenizer: PreTrainedTokenizerBase
    score: Scorer

    @staticmethod
    def of(
        tokens: TokenSet, tokenizer: PreTrainedTokenizerBase, score: Scorer, *, examples: int, max_new_tokens: int
    ) -> "TaskEvaluation":
        """The first `examples` of `tokens` that have a prompt and an answer: an answer is the last learned turn.

        Answers may be `max_new_tokens` long, and no longer than twice the reference and eight tokens: what runs
        on further is wrong already.
        """
        prompts: list[list[int]] = []
        references: list[str] = []
        limits: list[int] = []
        for ids, mask in (_example(tokens, at) for at in range(len(tokens))):
            if len(prompts) == examples:
                break
            learned = np.flatnonzero(mask)
            if len(learned) == 0:
                continue
            end = int(learned[-1]) + 1
            gaps = np.flatnonzero(~mask[:end])
            start = int(gaps[-1]) + 1 if len(gaps) else 0
            if start == 0:
                continue
            prompts.append(ids[:start].tolist())
            references.append(_text(tokenizer, ids[start:end].tolist()))
            limits.append(min(max_new_tokens, 2 * (end - start) + 8))
        return TaskEvaluation(prompts, references, limits, tokenizer, score)

    def __call__(self, model: Any) -> Mapping[str, float]:
        """The metrics of `model`, which may hold adapters, as it stands."""
        if not self.prompts:
            return {}
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        with unpacked_attention(inner):
            answers = generate_greedily(
                inner, self.prompts, stop_ids=find_stop_ids(self.tokenizer, inner), max_new_tokens=self.limits
            )
        return self.score([_text(self.tokenizer, ids) for ids in answers], self.references)


def canary_tokens(tokenizer: PreTrainedTokenizerBase, max_length: int) -> TokenSet:
    """Plain general English as examples of at most `max_length` tokens, every token counted.

    The text is part of edgeft and in none of its training sets. A model whose perplexity on it grows in a
    fine-tuning has forgotten some of its English.
    """
    text = (files("edgeft") / "assets" / CANARY).read_text(encoding="utf-8")
    encoded = []
    for paragraph in text.split("\n\n"):
        ids = tokenizer(" ".join(paragraph.split()), add_special_tokens=False).input_ids
        encoded += [ids[at : at + max_length] for at in range(0, len(ids), max_length)]
    # A single token has no predecessor to be told from.
    return TokenSet.build([(ids, [True] * len(ids)) for ids in encoded if len(ids) > 1])


def canary_loss(model: torch.nn.Module, tokens: Examples, micro_batch_tokens: int = 4096) -> float:
    """Mean loss of a general text in nats per token; its exponential is the perplexity."""
    config = LoopConfig(0.0, "constant", 0, float("inf"), micro_batch_tokens)
    return mean_loss(model, tokens, next_token_loss_sum, config)


def _example(tokens: TokenSet, at: int) -> tuple[np.ndarray, np.ndarray]:
    span = slice(tokens.offsets[at], tokens.offsets[at + 1])
    return tokens.input_ids[span], tokens.loss_mask[span]


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
