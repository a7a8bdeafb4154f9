"""Batched greedy decoding against one prompt at a time, recomputed from scratch for every token."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgeft.training.generation import _batches, find_stop_ids, generate_greedily
from tests.tiny import make_tiny_llama

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [20], [30, 31, 32]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


@torch.inference_mode()
def slow_greedy(model: Any, prompt: list[int], n: int) -> list[int]:
    """The definition: the largest logit after the whole sequence so far, no cache, no padding, no mask."""
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_a_batch_equals_each_prompt_alone(model: Any) -> None:
    expected = [slow_greedy(model, prompt, 20) for prompt in PROMPTS]
    assert len({tuple(e) for e in expected}) == 3
    assert generate_greedily(model, PROMPTS, stop_ids=(), max_new_tokens=20) == expected
    assert generate_greedily(model, PROMPTS, stop_ids=(), max_new_tokens=20, batch_tokens=1) == expected


def test_limits_of_single_prompts(model: Any) -> None:
    expected = [slow_greedy(model, prompt, n) for prompt, n in zip(PROMPTS, (3, 9, 1), strict=True)]
    assert generate_greedily(model, PROMPTS, stop_ids=(), max_new_tokens=[3, 9, 1]) == expected


def test_an_answer_ends_before_the_stop_token(model: Any) -> None:
    whole = [slow_greedy(model, prompt, 20) for prompt in PROMPTS]
    stop = whole[0][4]
    expected = [answer[: answer.index(stop)] if stop in answer else answer for answer in whole]
    assert len(expected[0]) < 20
    assert generate_greedily(model, PROMPTS, stop_ids={stop}, max_new_tokens=20) == expected


def test_generation_settings_of_the_model_are_not_used(model: Any) -> None:
    plain = generate_greedily(model, PROMPTS, stop_ids=(), max_new_tokens=12)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.do_sample = True
    model.generation_config.max_length = 4
    try:
        assert generate_greedily(model, PROMPTS, stop_ids=(), max_new_tokens=12) == plain
        assert model.generation_config.repetition_penalty == 5.0
    finally:
        model.generation_config.repetition_penalty = 1.0
        model.generation_config.do_sample = False
        model.generation_config.max_length = None


def test_no_prompts(model: Any) -> None:
    assert generate_greedily(model, [], stop_ids=(), max_new_tokens=4) == []


def test_progress_counts_prompts(model: Any) -> None:
    reported: list[int] = []
    generate_greedily(model, PROMPTS, stop_ids=(), max_new_tokens=2, batch_tokens=1, report=reported.append)
    assert reported == [1, 2, 3]


@pytest.mark.parametrize(
    ("lengths", "batch_tokens", "expected"),
    [
        ([4, 1, 2], 100, [[1, 2, 0]]),
        ([4, 1, 2], 4, [[1, 2], [0]]),
        ([4, 1, 2], 1, [[1], [2], [0]]),
        ([], 4, []),
        ([1] * 65, 1000, [list(range(64)), [64]]),
    ],
)
def test_batches(lengths: list[int], batch_tokens: int, expected: list[list[int]]) -> None:
    assert list(_batches(lengths, batch_tokens)) == expected


def test_stop_ids_come_from_model_tokenizer_and_template(folder: Path, model: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end, text_end = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert find_stop_ids(tokenizer, model) == {end}
    tokenizer.eos_token = "<|endoftext|>"
    assert find_stop_ids(tokenizer, model) == {end, text_end}
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '\\n' }}{% endfor %}"
    model.generation_config.eos_token_id = [7, 8]
    try:
        assert find_stop_ids(tokenizer, model) == {7, 8, text_end}
    finally:
        model.generation_config.eos_token_id = end
