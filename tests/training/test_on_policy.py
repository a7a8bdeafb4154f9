"""Batches the student answers itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeft.training.attention import use_packed_attention
from edgeft.training.batches import TokenSet
from edgeft.training.models import load_model
from edgeft.training.on_policy import OnPolicySet
from tests.tiny import make_tiny_llama

STOP, V = 2, 359


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    model = load_model(make_tiny_llama(tmp_path_factory.mktemp("student"), initializer_range=0.02))
    use_packed_attention(model)
    return model


def _tokens() -> TokenSet:
    rng = np.random.default_rng(1)
    rows = [(rng.integers(3, 300, n).tolist(), [False] * (n - 4) + [True] * 3 + [False]) for n in (9, 14, 6, 11)]
    return TokenSet.build([*rows, ([5, 6, 7], [True] * 3)])  # the last has no prompt


def _set(model: Any, **changes: Any) -> OnPolicySet:
    options = {"lmbda": 1.0, "seed": 3, "stop_ids": [STOP], "max_new_tokens": 6, "max_length": 16, "temperature": 1.0}
    return OnPolicySet(_tokens(), model, **(options | changes))


def test_answers_are_the_students_and_the_prompts_the_datas(model: Any) -> None:
    tokens, index = _tokens(), np.array([2, 0, 4, 1])
    batch = _set(model).pack(index)
    ids, start = batch.input_ids[0].tolist(), [int(at) for at in (batch.position_ids[0] == 0).nonzero()]
    rows = [ids[a:b] for a, b in zip(start, [*start[1:], len(ids)], strict=True)]
    learned = 0
    for i, row in zip(index, rows, strict=True):
        data = tokens.input_ids[tokens.offsets[i] : tokens.offsets[i + 1]].tolist()
        if i == 4:
            assert row == data
            continue
        prompt = data[:-4]
        answer = row[len(prompt) :]
        assert row[: len(prompt)] == prompt
        assert 1 <= len(answer) <= 6
        assert len(row) <= 16
        assert STOP not in answer[:-1]
        learned += len(answer)
    assert batch.loss_count == learned + 2  # of the example without a prompt the first token has no predecessor
    assert batch.index.tolist() == index.tolist()


def test_the_same_batch_is_drawn_again_after_a_kill(model: Any) -> None:
    first = _set(model).pack(np.array([0, 1]))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(_set(model).pack(np.array([0, 1])).input_ids, first.input_ids)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(_set(model, seed=4).pack(np.array([0, 1])).input_ids, first.input_ids)


def test_lmbda_is_the_share_of_batches(model: Any) -> None:
    tokens, sampled = _tokens(), _set(model, lmbda=0.25, max_new_tokens=1)
    batches = [np.array([a, b, c]) for a in range(5) for b in range(5) for c in range(5)]
    own = sum(not torch.equal(sampled.pack(i).input_ids, tokens.pack(i).input_ids) for i in batches)
    assert 0.12 < own / len(batches) < 0.38  # 125 draws: four standard errors
    assert torch.equal(_set(model, lmbda=0.0).pack(batches[3]).input_ids, tokens.pack(batches[3]).input_ids)


def test_samples_follow_the_students_distribution(model: Any) -> None:
    """Oracle: transformers' probabilities of the first token; 400 draws, by the chi-square of the ten likeliest."""
    prompt = [7, 8, 9, 10]
    tokens = TokenSet.build([([*prompt, 11], [False] * 4 + [True])])
    first = []
    for seed in range(25):
        row = OnPolicySet(tokens, model, 1.0, seed, [], 1, 16, 0.5).pack(np.zeros(16, dtype=np.int64))
        first += row.input_ids.view(16, 5)[:, 4].tolist()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        p = torch.softmax(model(torch.tensor([prompt])).logits[0, -1] / 0.5, -1)
    use_packed_attention(model)
    likely = p.topk(10).indices.tolist()
    expected = [400 * float(p[token]) for token in likely] + [400 * (1 - float(p[likely].sum()))]
    seen = [first.count(token) for token in likely]
    seen.append(400 - sum(seen))
    assert sum((s - e) ** 2 / e for s, e in zip(seen, expected, strict=True)) < 29.6  # 10 degrees, p = 0.001


def test_the_model_is_left_as_it_was(model: Any, tmp_path: Path) -> None:
    config = model.generation_config
    model.train()
    _set(model).pack(np.array([0]))
    assert model.training
    assert model.generation_config is config
    model.eval()
