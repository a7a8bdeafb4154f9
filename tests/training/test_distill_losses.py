"""Distillation losses and their gradients against formulas in float64, over whole logits and over known tokens."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from edgeft.training.attention import use_packed_attention
from edgeft.training.batches import TokenSet
from edgeft.training.distill_losses import (
    PROJECTION,
    ChunkedDistillation,
    DistillBatch,
    Divergence,
    HeadTargets,
    Objective,
    Teacher,
    TopTargets,
    add_projection,
    distillation_loss_sum,
    remove_projection,
)
from edgeft.training.losses import next_token_loss_sum

V, D, E = 50, 16, 24
Formula = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _kl(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(a > 0, a * (np.log(np.maximum(a, 1e-300)) - np.log(np.maximum(b, 1e-300))), 0).sum(-1)


def _jsd(beta: float) -> Formula:
    def formula(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        m = beta * p + (1 - beta) * q
        return beta * _kl(p, m) + (1 - beta) * _kl(q, m)

    return formula


DIVERGENCES: dict[str, tuple[Divergence, Formula]] = {
    "forward": (Divergence(), _kl),
    "reverse": (Divergence(beta=1.0), lambda p, q: _kl(q, p)),
    "jensen-shannon": (Divergence(beta=0.5), _jsd(0.5)),
    "generalised": (Divergence(beta=0.1), _jsd(0.1)),
    "warm": (Divergence(temperature=2.5), _kl),
    "warm and reverse": (Divergence(beta=1.0, temperature=0.7), lambda p, q: _kl(q, p)),
    "skewed": (Divergence(skew_alpha=0.1), lambda p, q: _kl(p, 0.1 * p + 0.9 * q)),
    "skewed reverse": (Divergence(beta=1.0, skew_alpha=0.3), lambda p, q: _kl(q, 0.3 * q + 0.7 * p)),
}


def _softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _coarse(p: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    known = np.take_along_axis(p, tokens, -1)
    rest = p.copy()
    np.put_along_axis(rest, tokens, 0.0, -1)
    return np.concatenate([known, rest.sum(-1, keepdims=True)], -1)


class _Case:
    """A student's head over random states, and a teacher's logits, in float64."""

    def __init__(self, n: int = 37):
        generator = np.random.default_rng(n)
        self.hidden = generator.normal(size=(n, D))
        self.weight = generator.normal(size=(V, D)) * 0.5
        self.teacher = 3 * generator.normal(size=(n, V))
        self.labels = generator.integers(0, V, n)

    def formula(self, hidden: np.ndarray, chosen: tuple[Divergence, Formula], ratio: float, k: int | None) -> float:
        divergence, formula = chosen
        logits = hidden @ self.weight.T
        p, q = _softmax(self.teacher / divergence.temperature), _softmax(logits / divergence.temperature)
        if k is not None:
            tokens = np.argsort(-self.teacher, -1)[:, :k]
            p, q = _coarse(p, tokens), _coarse(q, tokens)
        entropy = -np.log(_softmax(logits)[np.arange(len(logits)), self.labels]).sum()
        return float(ratio * formula(p, q).sum() + (1 - ratio) * entropy)

    def targets(self, divergence: Divergence, k: int | None) -> Any:
        logits = torch.from_numpy(self.teacher).float()
        if k is None:
            return HeadTargets(logits, None, None, divergence.temperature)
        p = _softmax(self.teacher / divergence.temperature)
        tokens = np.argsort(-self.teacher, -1)[:, :k]
        coarse = torch.from_numpy(_coarse(p, tokens)).float()
        known, rest = coarse[:, :-1].log().reshape(-1), coarse[:, -1].clamp(min=1e-38).log()
        return TopTargets(torch.from_numpy(tokens.reshape(-1)), known, rest, k * torch.arange(len(coarse) + 1))


@pytest.mark.parametrize("k", [None, 1, 8, V])
@pytest.mark.parametrize("ratio", [1.0, 0.3])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_loss_and_gradients_equal_the_formula(name: str, ratio: float, k: int | None) -> None:
    """Oracle: numpy in float64; its gradient by central differences, along a random direction."""
    case, chosen = _Case(), DIVERGENCES[name]
    hidden = torch.from_numpy(case.hidden).float().requires_grad_()
    weight = torch.from_numpy(case.weight).float().requires_grad_()
    loss = ChunkedDistillation.apply(
        hidden, weight, None, torch.from_numpy(case.labels), case.targets(chosen[0], k), Objective(chosen[0], ratio)
    )
    (loss / 7).backward()
    assert loss.item() == pytest.approx(case.formula(case.hidden, chosen, ratio, k), rel=1e-4, abs=1e-4)

    direction = np.random.default_rng(3).normal(size=case.hidden.shape)
    step = 1e-5
    above, below = (case.formula(case.hidden + s * direction, chosen, ratio, k) for s in (step, -step))
    slope = (above - below) / (2 * step) / 7
    assert hidden.grad is not None
    assert weight.grad is not None
    assert (hidden.grad.double().numpy() * direction).sum() == pytest.approx(slope, rel=2e-3, abs=2e-4)
    # logits = hidden Wᵀ: scaling either factor scales the logits alike.
    assert (weight.grad * weight).sum().item() == pytest.approx((hidden.grad * hidden).sum().item(), abs=1e-3)


@pytest.mark.parametrize("rows", [1, 1500])
def test_a_bias_and_many_chunks(rows: int) -> None:
    """Oracle: torch's own KL over whole logits in float64."""
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((rows, D), (V, D), (V,)))
    teacher, labels = torch.randn(rows, V), torch.zeros(rows, dtype=torch.long)
    exact = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
    log_q = torch.log_softmax(torch.nn.functional.linear(*exact), -1)
    log_p = torch.log_softmax(teacher.double(), -1)
    wanted = torch.nn.functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
    wanted.backward()
    single = [t.float().requires_grad_() for t in (hidden, weight, bias)]
    loss = ChunkedDistillation.apply(*single, labels, HeadTargets(teacher, None, None, 1.0), Objective())
    loss.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    for got, want in zip(single, exact, strict=True):
        assert got.grad is not None
        assert want.grad is not None
        assert torch.linalg.norm(got.grad.double() - want.grad) <= 1e-4 * torch.linalg.norm(want.grad)


def test_known_tokens_never_exceed_the_whole_divergence_and_reach_it() -> None:
    case = _Case()
    whole = case.formula(case.hidden, DIVERGENCES["forward"], 1.0, None)
    parts = [case.formula(case.hidden, DIVERGENCES["forward"], 1.0, k) for k in (1, 4, 16, V)]
    assert parts == sorted(parts)
    assert parts[0] < parts[-1] == pytest.approx(whole)


def test_losses_are_those_of_the_peer(trl_loss: Callable[..., torch.Tensor]) -> None:
    """Oracle: TRL's GKDTrainer.generalized_jsd_loss, where TRL is installed."""
    case = _Case()
    logits = torch.from_numpy(case.hidden @ case.weight.T).float()
    for beta in (0.0, 0.1, 0.5, 1.0):
        divergence = Divergence(beta=beta, temperature=1.5)
        wanted = trl_loss(logits, torch.from_numpy(case.teacher).float(), beta=beta, temperature=1.5, reduction="sum")
        got = ChunkedDistillation.apply(
            logits, None, None, torch.from_numpy(case.labels), case.targets(divergence, None), Objective(divergence)
        )
        assert got.item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.fixture
def trl_loss() -> Any:
    return pytest.importorskip("trl.experimental.gkd").GKDTrainer.generalized_jsd_loss


def _llama(seed: int, width: int, vocabulary: int = 97) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, initializer_range=0.3, tie_word_embeddings=False,
        )
    )  # fmt: skip
    use_packed_attention(model)
    return model


def _batch() -> Any:
    rng = np.random.default_rng(1)
    encoded = [(rng.integers(0, 97, n).tolist(), [False] + [True] * (n - 1)) for n in (5, 17, 9)]
    return TokenSet.build(encoded).pack(np.arange(3))


def test_a_live_teacher_gives_the_loss_transformers_would() -> None:
    """Oracle: transformers' forward passes of both models, one sequence at a time, and KL in float64."""
    student, teacher, batch = _llama(0, 32), _llama(1, 48), _batch()
    loss = distillation_loss_sum(Objective(), 97, Teacher(teacher, 97))(student, batch)
    for model in (student, teacher):
        model.set_attn_implementation("eager")
    wanted, start = 0.0, 0
    for length in (5, 17, 9):
        ids = batch.input_ids[:, start : start + length]
        start += length
        with torch.no_grad():
            log_q, log_p = (torch.log_softmax(m(ids).logits[0, :-1].double(), -1) for m in (student, teacher))
        wanted += (log_p.exp() * (log_p - log_q)).sum().item()
    assert loss.item() == pytest.approx(wanted, rel=1e-4)


def test_padding_columns_change_nothing() -> None:
    """A student and a teacher whose heads were padded to other widths give the loss and gradients they gave."""
    plain, wide = _llama(0, 32), _llama(0, 32)
    teacher, wide_teacher = _llama(1, 48), _llama(1, 48)
    wide.resize_token_embeddings(104, mean_resizing=False)
    wide_teacher.resize_token_embeddings(128, mean_resizing=False)
    batch = _batch()
    wanted = distillation_loss_sum(Objective(Divergence(beta=0.5)), 97, Teacher(teacher, 97))(plain, batch)
    got = distillation_loss_sum(Objective(Divergence(beta=0.5)), 97, Teacher(wide_teacher, 97))(wide, batch)
    wanted.backward()
    got.backward()
    assert got.item() == wanted.item()
    ours, theirs = wide.lm_head.weight.grad, plain.lm_head.weight.grad
    assert ours is not None
    assert theirs is not None
    assert torch.equal(ours[:97], theirs)
    assert not ours[97:].any()


def test_a_head_that_caps_its_logits_is_distilled_too() -> None:
    """Oracle: the same architecture's own logits. Gemma 2 caps them, so its head cannot be taken apart."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, attn_logit_softcapping=None, final_logit_softcapping=5.0,
    )  # fmt: skip
    student, batch = Gemma2ForCausalLM(config), _batch()
    use_packed_attention(student)
    label = torch.nn.functional.one_hot(batch.labels, 97).float().clamp(min=1e-30).log()
    certain = DistillBatch(**vars(batch), targets=HeadTargets(label, None, None, 1.0))
    distilled = distillation_loss_sum(Objective(), 97)(student, certain)
    assert distilled.item() == pytest.approx(next_token_loss_sum(student, batch).item(), rel=1e-4)
    distilled.backward()
    assert student.model.norm.weight.grad is not None


def test_hidden_states_are_matched_through_a_projection() -> None:
    """Oracle: the definition, over transformers' last hidden states."""
    student, teacher, batch = _llama(0, 32), _llama(1, 48), _batch()
    add_projection(student, 48)
    plain = distillation_loss_sum(Objective(), 97, Teacher(teacher, 97))(student, batch)
    both = distillation_loss_sum(Objective(hidden_weight=0.5), 97, Teacher(teacher, 97))(student, batch)
    states = []
    for model in (student, teacher):
        with torch.no_grad():
            row = model.model(
                input_ids=batch.input_ids, position_ids=batch.position_ids, sequence_groups=batch.groups
            ).last_hidden_state[0, batch.loss_positions]
        states.append(row)
    difference = states[0] @ getattr(student, PROJECTION).weight.detach().t() - states[1]
    wanted = 0.5 * difference.double().square().mean(-1).sum().item()
    assert (both - plain).item() == pytest.approx(wanted, rel=1e-4)
    both.backward()
    assert getattr(student, PROJECTION).weight.grad.abs().sum() > 0
    remove_projection(student)
    assert not [name for name in student.state_dict() if PROJECTION in name]
