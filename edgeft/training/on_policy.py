"""Batches whose answers the student samples itself (Agarwal et al. 2024, "On-Policy Distillation of Language Models").

Shapes: n examples, B prompts of a batch, T the longest of them, padded on the left.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from edgeft.training.attention import unpacked_attention
from edgeft.training.batches import Batch, TokenSet


@dataclass(frozen=True)
class OnPolicySet:
    """Examples for the loop of which a share `lmbda` of the batches gets answers sampled from `model` as it stands.

    Whether, and what is sampled, follows from `seed`, the batch's examples and the weights alone, so that a resumed
    training draws what it would have drawn. Answers end at `stop_ids`, after `max_new_tokens`, or when the example has
    `max_length` tokens.
    """

    tokens: TokenSet
    model: Any
    lmbda: float
    seed: int
    stop_ids: Collection[int]
    max_new_tokens: int
    max_length: int
    temperature: float

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example as the data has it, (n,)."""
        return self.tokens.lengths

    def pack(self, index: np.ndarray) -> Batch:
        """The packed row of the examples `index` (B,), with the data's answers or the student's."""
        drawn = hashlib.sha256(self.seed.to_bytes(8, "little") + index.astype("<i8").tobytes()).digest()
        if int.from_bytes(drawn[:8], "little") / 2**64 >= self.lmbda:
            return self.tokens.pack(index)
        prompts = [self._prompt(int(i)) for i in index]
        asked = [at for at, prompt in enumerate(prompts) if 0 < len(prompt) < self.max_length]
        if not asked:
            return self.tokens.pack(index)
        seed = int.from_bytes(drawn[8:15], "little")
        answers = dict(zip(asked, self._sample([prompts[at] for at in asked], seed), strict=True))
        encoded = [
            (prompts[at] + answers[at], [False] * len(prompts[at]) + [True] * len(answers[at]))
            if at in answers
            else self._example(int(i))
            for at, i in enumerate(index)
        ]
        batch = TokenSet.build(encoded).pack(np.arange(len(index)))
        return Batch(**(vars(batch) | {"index": index}))

    def _example(self, at: int) -> tuple[list[int], list[bool]]:
        span = slice(self.tokens.offsets[at], self.tokens.offsets[at + 1])
        return self.tokens.input_ids[span].tolist(), self.tokens.loss_mask[span].tolist()

    def _prompt(self, at: int) -> list[int]:
        """What stands before the last learned turn."""
        ids, mask = self._example(at)
        end = len(mask) - mask[::-1].index(True) if True in mask else 0
        while end > 0 and mask[end - 1]:
            end -= 1
        return ids[:end]

    @torch.no_grad()
    def _sample(self, prompts: Sequence[Sequence[int]], seed: int) -> list[list[int]]:
        """An answer to each prompt, its end token with it."""
        longest, filler = max(len(prompt) for prompt in prompts), min(self.stop_ids, default=0)
        ids = torch.full((len(prompts), longest), filler)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        config = GenerationConfig(
            do_sample=True, temperature=self.temperature, top_k=0, max_new_tokens=self.max_new_tokens,
            eos_token_id=sorted(self.stop_ids) or None, pad_token_id=filler,
        )  # fmt: skip
        was_training, inherited = self.model.training, self.model.generation_config
        self.model.eval()
        try:
            self.model.generation_config = GenerationConfig()
            with unpacked_attention(self.model), torch.random.fork_rng():
                torch.manual_seed(seed)
                output = self.model.generate(
                    ids.to(self.model.device), attention_mask=mask.to(self.model.device), generation_config=config
                )
        finally:
            self.model.generation_config = inherited
            self.model.train(was_training)
        answers = output[:, longest:].tolist()
        return [self._cut(row)[: self.max_length - len(p)] for row, p in zip(answers, prompts, strict=True)]

    def _cut(self, ids: list[int]) -> list[int]:
        end = next((at for at, token in enumerate(ids) if token in self.stop_ids), len(ids) - 1)
        return ids[: end + 1]
