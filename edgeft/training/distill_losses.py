"""Losses that draw a student's next-token distribution to a teacher's, each *summed* over tokens.

Shapes: L positions that carry loss, C positions of a chunk, D hidden width of the student, E of the teacher, V
vocabulary both share, k tokens of which the teacher's probability is known, S = k + 1 or V outcomes compared, N the
known tokens of all L positions.

A teacher known at its k most likely tokens only is compared over k + 1 outcomes: these tokens, and "another one",
with all that is left of the mass on both sides. By the log-sum inequality that divergence is never above the one over
all V tokens, and equal to it when teacher and student agree on how the rest is spread.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from edgeft.training.batches import Batch
from edgeft.training.losses import model_inputs, scaled_gradients, separate_head, sum_by_chunks

TINY = torch.finfo(torch.float32).tiny
LOG_TINY = math.log(TINY)
PROJECTION = "distill_projection"


@dataclass(frozen=True)
class Divergence:
    """How far a student q is from a teacher p, in nats a position; names of TRL's GKDConfig.

    `beta` 0 is the forward KL(p ‖ q), 1 the reverse KL(q ‖ p); between them β KL(p ‖ m) + (1 − β) KL(q ‖ m) with
    m = β p + (1 − β) q, the generalised Jensen-Shannon divergence (Agarwal et al. 2024, "On-Policy Distillation of
    Language Models", eq. 1). `skew_alpha` α mixes the other side in: KL(p ‖ α p + (1 − α) q) for beta 0 and
    KL(q ‖ α q + (1 − α) p) for beta 1 (Ko et al. 2024, "DistiLLM", eqs. 4 and 5). Both distributions are taken at
    `temperature`; the loss is not multiplied by its square, as in TRL.
    """

    beta: float = 0.0
    temperature: float = 1.0
    skew_alpha: float = 0.0

    def __call__(self, log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
        """Of log-probabilities (C, S) over the same outcomes, (C,)."""
        if self.beta == 0.0:
            return _kl(log_p, _mixture(log_p, log_q, self.skew_alpha))
        if self.beta == 1.0:
            return _kl(log_q, _mixture(log_q, log_p, self.skew_alpha))
        mixed = _mixture(log_p, log_q, self.beta)
        return self.beta * _kl(log_p, mixed) + (1.0 - self.beta) * _kl(log_q, mixed)


@dataclass(frozen=True)
class Objective:
    """What a student minimizes: kd_ratio · divergence + (1 − kd_ratio) · cross-entropy with the label (torchtune's
    `kd_ratio`), and `hidden_weight` times the mean squared difference of the last hidden states."""

    divergence: Divergence = Divergence()
    kd_ratio: float = 1.0
    hidden_weight: float = 0.0


class Targets(Protocol):
    """A teacher's distributions at L positions."""

    def outcomes(self, part: slice) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Of the positions `part`: tokens (C, k) with log-probabilities (C, k + 1), the last one of all other
        tokens together; or None with those of all tokens (C, V). A position with fewer than k known tokens repeats
        its first one with the log-probability −∞."""
        ...


@dataclass(frozen=True)
class TopTargets:
    """The most likely tokens of each position, one behind the other: `tokens` and `log_probs` (N,), of which position
    i has those from `bounds[i]` to `bounds[i + 1]` (L + 1,), and `log_rest` (L,) of all others together."""

    tokens: torch.Tensor
    log_probs: torch.Tensor
    log_rest: torch.Tensor
    bounds: torch.Tensor

    def outcomes(self, part: slice) -> tuple[torch.Tensor | None, torch.Tensor]:
        """See Targets."""
        starts, stops = self.bounds[:-1][part, None], self.bounds[1:][part, None]
        at = starts + torch.arange(int((stops - starts).max()), device=starts.device)
        known = at < stops
        at = torch.where(known, at, starts)
        log_probs = self.log_probs[at].masked_fill_(~known, -torch.inf)
        return self.tokens[at], torch.cat([log_probs, self.log_rest[part, None]], dim=1)


@dataclass(frozen=True)
class HeadTargets:
    """All tokens: of `hidden` (L, E) through a head `weight` (V, E) and `bias`; or, weight None, of logits (L, V)."""

    hidden: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    temperature: float

    def outcomes(self, part: slice) -> tuple[torch.Tensor | None, torch.Tensor]:
        """See Targets."""
        rows = self.hidden[part]
        logits = rows if self.weight is None else F.linear(rows, self.weight, self.bias)
        return None, torch.log_softmax(logits.float() / self.temperature, dim=-1)


@dataclass(frozen=True)
class DistillBatch(Batch):
    """A packed row and, at its loss positions, what the teacher says."""

    targets: Targets


class Teacher:
    """A frozen model that answers for the positions of a batch as they come; it must attend to packed rows.

    `vocabulary` V: the tokens it shares with the student; padding columns behind them are cut off.
    """

    def __init__(self, model: Any, vocabulary: int, autocast: torch.dtype | None = None):
        self.model = model.eval().requires_grad_(False)
        self.vocabulary, self.autocast = vocabulary, autocast

    @torch.no_grad()
    def targets(self, batch: Batch, temperature: float) -> HeadTargets:
        """Its distributions at the batch's loss positions."""
        device = batch.input_ids.device.type
        with torch.autocast(device, dtype=self.autocast, enabled=self.autocast is not None):
            return HeadTargets(*head_inputs(self.model, batch, self.vocabulary), temperature)


def distillation_loss_sum(
    objective: Objective, vocabulary: int, teacher: Teacher | None = None
) -> Callable[[Any, Any], torch.Tensor]:
    """The objective, in nats, summed over a batch's loss tokens; a loss for `train_loop`.

    The teacher's distributions are the batch's own (DistillBatch), or computed by `teacher`. `vocabulary` V: the
    tokens both know; a head's columns behind them are padding and take no part. Matching hidden states needs the
    teacher itself; where the widths differ the student holds a module PROJECTION (`add_projection`).
    """

    def loss_sum(model: Any, batch: Any) -> torch.Tensor:
        given = teacher.targets(batch, objective.divergence.temperature) if teacher is not None else batch.targets
        hidden, weight, bias = head_inputs(model, batch, vocabulary)
        loss: torch.Tensor = ChunkedDistillation.apply(hidden, weight, bias, batch.labels, given, objective)
        if objective.hidden_weight:
            loss = loss + objective.hidden_weight * _hidden_loss_sum(model, hidden, given)
        return loss

    return loss_sum


def head_inputs(
    model: Any, batch: Batch, vocabulary: int
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """At the loss positions: hidden states (L, D) with the head's weight (V, D) and bias (V,), cut to `vocabulary`;
    logits (L, V), None and None where the head's product is not all there is to the logits."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    inputs = model_inputs(batch)
    head = separate_head(base)
    if head is None:
        return model(**inputs, logits_to_keep=batch.loss_positions).logits[0, :, :vocabulary], None, None
    hidden = base.get_decoder()(**inputs).last_hidden_state[0, batch.loss_positions]
    whole = len(head.weight) == vocabulary
    weight = head.weight if whole else head.weight[:vocabulary]
    return hidden, weight, head.bias if whole or head.bias is None else head.bias[:vocabulary]


def add_projection(student: Any, width: int) -> None:
    """Give the student a trained map from its hidden states to a teacher's of `width` E, where that is not its own
    (Jiao et al. 2020, "TinyBERT", eq. 8). Take it off with `remove_projection` before the student is saved."""
    narrow = student.config.get_text_config().hidden_size
    if narrow != width:
        student.add_module(PROJECTION, torch.nn.Linear(narrow, width, bias=False))


def remove_projection(student: Any) -> None:
    """Undo `add_projection`."""
    if hasattr(student, PROJECTION):
        delattr(student, PROJECTION)


class ChunkedDistillation(torch.autograd.Function):
    """sum_i kd_ratio · D(p_i, q_i) − (1 − kd_ratio) · log q_i[label_i], gradients taken in the forward pass by chunks.

    hidden (L, D), weight (V, D), bias (V,) or None, labels (L,) → scalar float32; weight None: hidden are logits
    (L, V). No logits outlive their chunk; see `sum_by_chunks`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        targets: Targets,
        objective: Objective,
    ) -> torch.Tensor:
        def of_chunk(part: slice, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return loss_and_logit_gradient(objective, logits, labels[part], *targets.outcomes(part))

        return sum_by_chunks(ctx, hidden, weight, bias, of_chunk)

    @staticmethod
    def backward(ctx: Any, *grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (*scaled_gradients(ctx, grad_output[0]), None, None, None)


def loss_and_logit_gradient(
    objective: Objective,
    logits: torch.Tensor,
    labels: torch.Tensor,
    tokens: torch.Tensor | None,
    log_p: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a chunk, summed, and its gradient (C, V) with respect to the student's logits (C, V).

    With ℓ_i the student's log-probability of outcome i and g_i = ∂D/∂ℓ_i, G their sum, q the softmax and r the set of
    tokens outside `tokens`: ∂D/∂z_j = g_j − q_j G for a known token, q_j (g_r / q_r − G) for one of the rest.
    """
    ratio, temperature = objective.kd_ratio, objective.divergence.temperature
    loss = torch.zeros((), dtype=torch.float32, device=logits.device)
    grad = torch.zeros_like(logits)
    if ratio > 0.0:
        over = _over_all if tokens is None else _over_known
        loss, grad = over(objective.divergence, logits / temperature, tokens, log_p.float())
        loss, grad = ratio * loss, grad.mul_(ratio / temperature)
    if ratio < 1.0:
        log_q = torch.log_softmax(logits, dim=-1)
        at = labels[:, None]
        loss = loss - (1.0 - ratio) * log_q.gather(1, at).sum()
        grad.add_(log_q.exp_(), alpha=1.0 - ratio)
        grad.scatter_add_(1, at, grad.new_full(at.shape, ratio - 1.0))
    return loss, grad


def _over_all(
    divergence: Divergence, logits: torch.Tensor, _: torch.Tensor | None, log_p: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    log_q = torch.log_softmax(logits, dim=-1)
    loss, g = _value_and_slope(divergence, log_p, log_q)
    return loss, g - log_q.exp_() * g.sum(-1, keepdim=True)


def _over_known(
    divergence: Divergence, logits: torch.Tensor, tokens: torch.Tensor | None, log_p: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    assert tokens is not None
    absent = log_p.isinf()
    log_p = log_p.masked_fill(absent, LOG_TINY)
    logits = logits - logits.amax(-1, keepdim=True)
    known = logits.gather(1, tokens)
    mass = logits.exp_()  # of every token, over the largest
    known_mass = mass.gather(1, tokens).masked_fill_(absent[:, :-1], 0.0)
    rest = mass.scatter_(1, tokens, 0.0).sum(-1, keepdim=True)  # summed alone: 1 − Σ would lose a small one
    z = rest + known_mass.sum(-1, keepdim=True)
    log_q = torch.cat([known, rest.clamp(min=TINY).log()], dim=1) - z.log()
    log_q.masked_fill_(absent, LOG_TINY)  # as unlikely as there: nothing to learn
    loss, g = _value_and_slope(divergence, log_p, log_q)
    total = g.sum(-1, keepdim=True) / z
    grad = mass.mul_(g[:, -1:] / rest.clamp(min=TINY) - total)
    return loss, grad.scatter_add_(1, tokens, g[:, :-1] - known_mass * total)


def _value_and_slope(
    divergence: Divergence, log_p: torch.Tensor, log_q: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The divergence summed over positions, and ∂/∂log_q (C, S) with the entries of log_q taken as free."""
    with torch.enable_grad():
        free = log_q.detach().requires_grad_()
        loss = divergence(log_p, free).sum()
        (slope,) = torch.autograd.grad(loss, free)
    return loss.detach(), slope


def _kl(log_a: torch.Tensor, log_b: torch.Tensor) -> torch.Tensor:
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def _mixture(log_a: torch.Tensor, log_b: torch.Tensor, share: float) -> torch.Tensor:
    """log(share · a + (1 − share) · b)."""
    if share == 0.0:
        return log_b
    weights = torch.tensor([share, 1.0 - share], dtype=torch.float64).log().tolist()
    return torch.logaddexp(log_a + weights[0], log_b + weights[1])


def _hidden_loss_sum(model: Any, hidden: torch.Tensor, given: HeadTargets) -> torch.Tensor:
    """Summed over positions, the mean squared difference over the teacher's width."""
    projected = getattr(model, PROJECTION)(hidden) if hasattr(model, PROJECTION) else hidden
    return (projected.float() - given.hidden.float()).square().mean(-1).sum()
