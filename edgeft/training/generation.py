"""Greedy answers from a torch model, many prompts at a time.

Shapes: B prompts of a batch, T the longest of them; shorter ones are padded on the left.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

MAX_BATCH = 64
PROBE = "edgeft"


def generate_greedily(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Collection[int],
    max_new_tokens: int | Sequence[int],
    batch_tokens: int = 16384,
    report: Callable[[int], None] = lambda done: None,
) -> list[list[int]]:
    """The most likely continuation of each prompt, up to and without the first of `stop_ids`.

    `max_new_tokens` is one limit for all, or one for each prompt. Prompts of like length share a batch of at
    most `batch_tokens` padded tokens, answers included; `report` gets the number of prompts done. Penalties
    and sampling settings in the model's own generation config are not used.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    answers: list[list[int]] = [[] for _ in prompts]
    was_training = model.training
    model.eval()
    done = 0
    for batch in _batches([len(p) + n for p, n in zip(prompts, limits, strict=True)], batch_tokens):
        rows = _generate_batch(model, [prompts[i] for i in batch], stop_ids, max(limits[i] for i in batch))
        for index, row in zip(batch, rows, strict=True):
            answers[index] = _before_stop(row[: limits[index]], stop_ids)
        done += len(batch)
        report(done)
    model.train(was_training)
    return answers


def find_stop_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> frozenset[int]:
    """Tokens that end an answer: the end tokens of the model and its tokenizer, and the first special token
    that the chat template writes after an assistant's message."""
    own = model.generation_config.eos_token_id if model.generation_config else None
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    turn = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE}]
    text = str(tokenizer.apply_chat_template(turn, tokenize=False))
    suffix = text[text.rindex(PROBE) + len(PROBE) :]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    after = tokenizer(suffix, add_special_tokens=False).input_ids
    return frozenset(ends | set([token for token in after if token in special][:1]))


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of like lengths, each batch at most `batch_tokens` after padding (or a single prompt)."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (len(batch) == MAX_BATCH or (len(batch) + 1) * lengths[index] > batch_tokens):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.inference_mode()
def _generate_batch(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], stop_ids: Collection[int], max_new_tokens: int
) -> list[list[int]]:
    longest = max(len(prompt) for prompt in prompts)
    filler = min(stop_ids, default=0)  # any id: padding is masked before the prompt and cut after a stop
    ids = torch.full((len(prompts), longest), filler)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    device = model.device
    generate: Any = model.generate
    inherited, model.generation_config = model.generation_config, GenerationConfig()
    try:
        output = generate(
            ids.to(device),
            attention_mask=mask.to(device),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=max_new_tokens,
                eos_token_id=sorted(stop_ids) or None,
                pad_token_id=filler,
            ),
        )
    finally:
        model.generation_config = inherited
    return output[:, longest:].tolist()


def _before_stop(ids: list[int], stop_ids: Collection[int]) -> list[int]:
    end = next((place for place, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[:end]
