"""Preference losses and gradients against the plain formulas, answers run one by one by transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from edgeft.console import silent_log
from edgeft.data.preferences import EncodedPair
from edgeft.errors import ModelError
from edgeft.training.batches import plan_epochs
from edgeft.training.fused_lora import fuse_lora
from edgeft.training.loop import LoopConfig, mean_loss, train_loop
from edgeft.training.pair_attention import use_pair_attention
from edgeft.training.pairs import PairSet
from edgeft.training.preference import (
    ChunkedLogProbs,
    answer_log_probs,
    dpo_loss_sum,
    orpo_loss_sum,
    preference_metrics,
    reference_log_probs,
)

VOCABULARY = 97
BETA = 0.3
SHAPES = [(5, 4, 7), (30, 12, 3), (1, 1, 1), (28, 11, 9), (64, 2, 33), (6, 4, 6), (3, 40, 41)]
FAMILIES: dict[str, tuple[type, type]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
}


def _pairs(shapes: list[tuple[int, int, int]] = SHAPES, seed: int = 0) -> list[EncodedPair]:
    """Random ids; the middle of a long answer is not learned (as a tool's turn within an answer is not)."""
    rng = np.random.default_rng(seed)
    pairs = []
    for p, c, r in shapes:
        chosen_mask = [not (6 <= at < 9) for at in range(c)]
        ids = [rng.integers(0, VOCABULARY, n).tolist() for n in (p, c, r)]
        pairs.append(EncodedPair(*ids, chosen_mask, [True] * r))
    return pairs


def _tiny(family: str = "llama", *, tied: bool = True, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config, model = FAMILIES[family]
    return model(
        config(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3, tie_word_embeddings=tied,
        )
    )  # fmt: skip


def _with_lora(model: Any) -> Any:
    torch.manual_seed(5)
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:  # drawn in float32, so that a float64 model gets the same
                parameter.copy_(0.1 * torch.randn(parameter.shape, dtype=torch.float32))
    return tuned.to(model.dtype)


def _oracle_sums(model: Any, pairs: list[EncodedPair]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (n, 2) and their token counts: each prompt + answer alone through transformers."""
    sums, counts = [], []
    for one in pairs:
        for answer, mask in ((one.chosen, one.chosen_mask), (one.rejected, one.rejected_mask)):
            ids = torch.tensor([one.prompt + answer])
            logits = model(input_ids=ids).logits[0, len(one.prompt) - 1 : -1]
            each = F.log_softmax(logits, -1).gather(1, torch.tensor(answer)[:, None])[:, 0]
            learned = torch.tensor(mask)
            sums.append((each * learned).sum())
            counts.append(learned.sum())
    return torch.stack(sums).view(-1, 2), torch.stack(counts).view(-1, 2)


def _oracle_dpo(sums: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Rafailov et al. 2023, eq. 7."""
    ratio = sums - reference
    return -torch.log(torch.sigmoid(BETA * (ratio[:, 0] - ratio[:, 1]))).sum()


def _oracle_orpo(sums: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Hong et al. 2024, eqs. 4 to 7."""
    p = torch.exp(sums / counts)
    odds = p / (1 - p)
    return (-torch.log(p[:, 0]) - BETA * torch.log(torch.sigmoid(torch.log(odds[:, 0] / odds[:, 1])))).sum()


def _assert_same_gradients(model: Any, wanted: Any) -> None:
    for (name, got), want in zip(model.named_parameters(), wanted.parameters(), strict=True):
        if want.requires_grad:
            assert torch.linalg.norm(got.grad - want.grad) <= 1e-5 * torch.linalg.norm(want.grad), name


@pytest.mark.parametrize("objective", ["dpo", "orpo"])
@pytest.mark.parametrize(
    ("family", "tied", "lora"),
    [("llama", True, False), ("llama", False, True), ("qwen2", True, True), ("qwen2", False, False)],
)
def test_loss_and_gradients_equal_the_formulas(objective: str, family: str, tied: bool, lora: bool) -> None:
    pairs = _pairs()
    reference = _oracle_sums(_tiny(family, tied=tied, seed=1).double(), pairs)[0].detach()
    plain, model = _tiny(family, tied=tied).double(), _tiny(family, tied=tied)
    use_pair_attention(model)
    if lora:
        plain, model = _with_lora(plain), _with_lora(model)
    sums, counts = _oracle_sums(plain, pairs)
    expected = _oracle_dpo(sums, reference) if objective == "dpo" else _oracle_orpo(sums, counts)
    expected.backward()

    batch = PairSet.build(pairs).with_reference(reference.numpy()).pack(np.arange(len(pairs)))
    loss = (dpo_loss_sum(BETA) if objective == "dpo" else orpo_loss_sum(BETA))(model, batch)
    loss.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    _assert_same_gradients(model, plain)


def test_fused_adapters_give_the_same_loss_and_gradients() -> None:
    """Oracle: peft's own layers, which the test above holds to the formula."""
    pairs = PairSet.build(_pairs())
    pairs = pairs.with_reference(np.full((len(pairs), 2), -20.0))
    batch = pairs.pack(np.arange(len(pairs)))
    models = [_tiny(), _tiny()]
    for at, model in enumerate(models):
        use_pair_attention(model)
        models[at] = _with_lora(model)
    assert fuse_lora(models[1]).whole_layers == 2
    plain, fused = (dpo_loss_sum(BETA)(model, batch) for model in models)
    plain.backward()
    fused.backward()
    assert fused.item() == pytest.approx(plain.item(), rel=1e-5)
    _assert_same_gradients(models[1], models[0])


def test_an_adapted_head_gives_the_same_log_probabilities() -> None:
    """`lm_head` as a LoRA target is no plain linear layer: the model itself makes the logits then."""
    pairs = _pairs()
    base = _tiny(tied=False)
    expected = get_peft_model(base, LoraConfig(r=4, target_modules=["lm_head", "q_proj"]))
    with torch.no_grad():
        for name, parameter in expected.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        wanted, _ = _oracle_sums(expected, pairs)
        use_pair_attention(base)
        got, _ = answer_log_probs(expected, PairSet.build(pairs).pack(np.arange(len(pairs))))
    assert torch.allclose(got, wanted.double(), rtol=1e-5)


@pytest.mark.parametrize("head_trains", [False, True])
@pytest.mark.parametrize("n", [1, 1023, 1025])
def test_chunked_log_probs_equal_float64(n: int, head_trains: bool) -> None:
    """Oracle: torch's log_softmax over whole logits, each token with a weight of its own."""
    torch.manual_seed(n)
    hidden, weight, bias = torch.randn(n, 16), torch.randn(50, 16), torch.randn(50)
    labels, factor = torch.randint(0, 50, (n,)), torch.randn(n)
    exact = [t.double().requires_grad_(t is hidden or head_trains) for t in (hidden, weight, bias)]
    single = [t.clone().requires_grad_(t is hidden or head_trains) for t in (hidden, weight, bias)]
    expected = F.log_softmax(F.linear(*exact), -1).gather(1, labels[:, None])[:, 0]
    (expected * factor).sum().backward()
    got = ChunkedLogProbs.apply(*single, labels)
    (got * factor).sum().backward()

    assert torch.allclose(got.double(), expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(single, exact, strict=True):
        if b.grad is None:
            assert a.grad is None
        else:
            assert torch.linalg.norm(a.grad - b.grad) <= 1e-5 * torch.linalg.norm(b.grad)


def test_bfloat16_stays_within_its_rounding() -> None:
    pairs = PairSet.build(_pairs())
    model = _tiny()
    use_pair_attention(model)
    exact, _ = answer_log_probs(model, pairs.pack(np.arange(len(pairs))))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, _ = answer_log_probs(model, pairs.pack(np.arange(len(pairs))))
    assert torch.linalg.norm(rough - exact) < 0.02 * torch.linalg.norm(exact)


def test_pairs_do_not_see_each_other() -> None:
    """A pair scores the same alone, in a row with others, and whatever the other answer is."""
    pairs = _pairs()
    model = _tiny()
    use_pair_attention(model)
    with torch.no_grad():
        together, _ = answer_log_probs(model, PairSet.build(pairs).pack(np.arange(len(pairs))))
        for at, one in enumerate(pairs):
            alone, _ = answer_log_probs(model, PairSet.build(pairs).pack(np.array([at])))
            swapped = EncodedPair(one.prompt, one.rejected, one.chosen, one.rejected_mask, one.chosen_mask)
            other, _ = answer_log_probs(model, PairSet.build([swapped]).pack(np.array([0])))
            assert torch.allclose(alone[0], together[at], rtol=1e-5)
            assert torch.allclose(other[0].flip(0), together[at], rtol=1e-5)


def test_pack_lays_out_prompt_chosen_rejected() -> None:
    first = EncodedPair([1, 2], [3, 4], [5], [True, True], [True])
    second = EncodedPair([6], [7], [8, 9], [True], [False, True])
    batch = PairSet.build([first, second]).pack(np.array([1, 0]))
    assert batch.input_ids.tolist() == [[6, 7, 8, 9, 1, 2, 3, 4, 5]]
    assert batch.position_ids.tolist() == [[0, 1, 1, 2, 0, 1, 2, 3, 2]]
    assert batch.labels.tolist() == [7, 9, 3, 4, 5]
    assert batch.loss_positions.tolist() == [0, 2, 5, 6, 5]
    assert batch.answer.tolist() == [0, 1, 2, 2, 3]
    assert (batch.n_tokens, batch.loss_count) == (9, 2)
    assert sorted(batch.groups.back.tolist()) == sorted(set(batch.groups.back.tolist()))


def test_a_set_is_saved_as_the_same_bytes_and_read_back(tmp_path: Path) -> None:
    pairs = PairSet.build(_pairs())
    pairs.save(tmp_path / "a.npz")
    pairs.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    back = PairSet.load(tmp_path / "a.npz")
    assert len(back) == len(pairs)
    assert back.lengths.tolist() == [sum(shape) for shape in SHAPES]
    for name in ("input_ids", "loss_mask", "offsets", "prompt_lengths", "chosen_lengths"):
        got, want = getattr(back, name), getattr(pairs, name)
        assert got.dtype == want.dtype
        assert np.array_equal(got, want)


@pytest.mark.parametrize("lora", [False, True])
def test_the_reference_is_the_start_and_is_computed_once(tmp_path: Path, lora: bool) -> None:
    """Oracle: transformers, one answer at a time; adapters that are not zero belong to the start."""
    pairs = _pairs()
    plain, model = _tiny(), _tiny()
    use_pair_attention(model)
    if lora:
        plain, model = _with_lora(plain), _with_lora(model)
    tokens = PairSet.build(pairs)
    reference = reference_log_probs(model, tokens, tmp_path, micro_batch_tokens=80, key="base")
    with torch.no_grad():
        expected, _ = _oracle_sums(plain, pairs)
        for parameter in model.parameters():
            parameter.mul_(0.5)
    assert np.allclose(reference, expected.double().numpy(), rtol=1e-5)
    assert np.array_equal(reference_log_probs(model, tokens, tmp_path, micro_batch_tokens=80, key="base"), reference)
    other = reference_log_probs(model, tokens, tmp_path, micro_batch_tokens=80, key="another base")
    assert not np.allclose(other, reference, rtol=1e-3)
    (tmp_path / "reference.npz").write_bytes(b"cut short")
    again = reference_log_probs(model, tokens, tmp_path, micro_batch_tokens=200, key="another base")
    assert np.allclose(again, other, rtol=1e-5)


def test_fresh_adapters_are_left_out_of_the_reference(tmp_path: Path) -> None:
    tokens = PairSet.build(_pairs())
    base = _tiny()
    use_pair_attention(base)
    wanted = reference_log_probs(base, tokens, tmp_path / "base", micro_batch_tokens=100)
    tuned = get_peft_model(base, LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear"))
    got = reference_log_probs(tuned, tokens, tmp_path / "tuned", micro_batch_tokens=100)
    assert np.array_equal(got, wanted)
    assert tuned.training


@pytest.mark.parametrize("objective", ["dpo", "orpo"])
def test_metrics_equal_the_formulas(objective: Any, tmp_path: Path) -> None:
    pairs = _pairs()
    model, start = _tiny(), _tiny(seed=1).double()
    sums, counts = _oracle_sums(_tiny().double(), pairs)
    reference = _oracle_sums(start, pairs)[0].detach()
    rewards = BETA * (sums - reference) if objective == "dpo" else BETA * sums / counts
    loss = _oracle_dpo(sums, reference) if objective == "dpo" else _oracle_orpo(sums, counts)
    use_pair_attention(model)
    tokens = PairSet.build(pairs).with_reference(reference.numpy())
    got = preference_metrics(model, tokens, objective, BETA, micro_batch_tokens=90)
    margin = rewards[:, 0] - rewards[:, 1]
    assert got["preference_accuracy"] == pytest.approx((margin > 0).double().mean().item())
    assert got["reward_margin"] == pytest.approx(margin.mean().item(), rel=1e-4)
    assert got["loss"] == pytest.approx(loss.item() / len(pairs), rel=1e-5)


def test_an_untrained_model_has_no_preference(tmp_path: Path) -> None:
    """At the reference every reward is zero: the loss is log 2 and accuracy one half."""
    tokens = PairSet.build(_pairs())
    model = _tiny()
    use_pair_attention(model)
    tokens = tokens.with_reference(reference_log_probs(model, tokens, tmp_path, micro_batch_tokens=90))
    got = preference_metrics(model, tokens, "dpo", BETA, micro_batch_tokens=90)
    assert got == pytest.approx({"preference_accuracy": 0.5, "reward_margin": 0.0, "loss": np.log(2)})


@pytest.mark.parametrize("objective", ["dpo", "orpo"])
def test_the_loop_learns_a_preference(objective: Any, tmp_path: Path) -> None:
    """Training pairs and pairs never seen: the chosen answers hold small ids, the rejected ones large ids."""
    rng = np.random.default_rng(2)

    def some(n: int) -> PairSet:
        def one() -> EncodedPair:
            p, c, r = rng.integers(3, 12, 3)
            small, large = rng.integers(0, 6, c).tolist(), rng.integers(50, 56, r).tolist()
            return EncodedPair(rng.integers(0, 90, p).tolist(), small, large, [True] * c, [True] * r)

        return PairSet.build([one() for _ in range(n)])

    model = _tiny()
    use_pair_attention(model)
    train, held = some(40), some(20)
    if objective == "dpo":
        train, held = (
            s.with_reference(reference_log_probs(model, s, tmp_path, name=f"{i}.npz", micro_batch_tokens=512))
            for i, s in enumerate((train, held))
        )
    loss_sum = (dpo_loss_sum if objective == "dpo" else orpo_loss_sum)(BETA)
    config = LoopConfig(
        learning_rate=1e-2, lr_scheduler_type="constant", warmup_steps=0, max_grad_norm=1.0, micro_batch_tokens=256,
    )  # fmt: skip
    plan = plan_epochs(train.lengths, batch_tokens=256, epochs=8, seed=0)
    before = mean_loss(model, held, loss_sum, config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    train_loop(model, optimizer, train, plan, loss_sum, config, out=tmp_path, log=silent_log(), validation=held)
    after = preference_metrics(model, held, objective, BETA, micro_batch_tokens=512)
    assert after["loss"] < before
    assert after["preference_accuracy"] > 0.9


def test_what_cannot_be_done_is_refused() -> None:
    tokens = PairSet.build(_pairs([(10, 30, 4)]))
    batch = tokens.pack(np.array([0]))
    model = _tiny()
    use_pair_attention(model)
    with pytest.raises(ModelError, match="reference log-probabilities"):
        dpo_loss_sum(BETA)(model, batch)
    with pytest.raises(ModelError, match="pair groups"):
        model(input_ids=torch.tensor([[1, 2]]))
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, use_sliding_window=True, sliding_window=16, max_window_layers=0,
    )  # fmt: skip
    short = Qwen2ForCausalLM(config)
    use_pair_attention(short)
    with pytest.raises(ModelError, match="40 tokens are longer than the model's sliding window of 16"):
        orpo_loss_sum(BETA)(short, batch)
