"""Learning from preferences: DPO against a reference, ORPO without one; losses *summed* over pairs.

Shapes: B pairs in a row, n pairs in a set, L answer tokens that are scored, C positions of a chunk, D hidden
width, V vocabulary.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F

from edgeft.artifact import writing
from edgeft.console import Log, silent_log
from edgeft.errors import ModelError
from edgeft.training.losses import chunk_rows, separate_head
from edgeft.training.pairs import PairBatch, PairSet

LossSum = Callable[[Any, PairBatch], torch.Tensor]
Objective = Literal["dpo", "orpo"]
REFERENCE_FILE = "reference.npz"
CERTAIN = -1e-6  # mean log-probability above which the odds of an answer are taken as e^CERTAIN's


def dpo_loss_sum(beta: float) -> LossSum:
    """Sum over pairs of −log σ(β [(log π(c) − log π_ref(c)) − (log π(r) − log π_ref(r))]), log-probabilities
    summed over each answer's tokens (Rafailov et al. 2023, "Direct Preference Optimization", eq. 7).

    The pairs need their reference log-probabilities: `pairs.with_reference(reference_log_probs(...))`.
    """

    def loss_sum(model: Any, batch: PairBatch) -> torch.Tensor:
        rewards = _dpo_rewards(answer_log_probs(model, batch)[0], batch, beta)
        return _dpo_losses(rewards).sum()

    return loss_sum


def orpo_loss_sum(beta: float) -> LossSum:
    """Sum over pairs of −l(c) − β log σ(log odds(c) − log odds(r)), where l is an answer's mean log-probability
    per token and odds = e^l / (1 − e^l) (Hong et al. 2024, "ORPO", eqs. 4 to 7; β is its λ).

    The first term is over the answer's tokens, as in the paper; TRL's trainer takes the prompt's with them.
    """

    def loss_sum(model: Any, batch: PairBatch) -> torch.Tensor:
        return _orpo_losses(_mean_log_probs(*answer_log_probs(model, batch)), beta).sum()

    return loss_sum


@torch.no_grad()
def reference_log_probs(
    model: Any,
    pairs: PairSet,
    folder: Path,
    *,
    micro_batch_tokens: int,
    name: str = REFERENCE_FILE,
    key: str = "",
    autocast: torch.dtype | None = None,
    log: Log | None = None,
) -> np.ndarray:
    """Log-probabilities (n, 2) float64 of chosen and rejected under the model as it stands, kept in `folder/name`.

    Call it before training and before a checkpoint is loaded: the model's start is the reference. A file that
    holds those of the same pairs under the same `key` (say, the base's hash) is read instead, so that a resumed
    run computes nothing again. Raises ArtifactError when the disk refuses.
    """
    path = folder / name
    kept = _read_reference(path, pairs, key)
    if kept is not None:
        return kept
    result = np.zeros((len(pairs), 2))
    with _fresh_adapters_off(model), (log or silent_log()).progress("reference", len(pairs), "pairs") as progress:
        done = 0
        for batch, sums, _ in _scored(model, pairs, micro_batch_tokens, autocast):
            result[batch.index] = sums.cpu().numpy()
            done += batch.loss_count
            progress.update(done)
    with writing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, log_probs=result, key=np.array(_reference_key(pairs, key)))
    return result


@torch.no_grad()
def preference_metrics(
    model: Any,
    pairs: PairSet,
    objective: Objective,
    beta: float,
    *,
    micro_batch_tokens: int,
    autocast: torch.dtype | None = None,
) -> dict[str, float]:
    """`preference_accuracy`, the share of pairs whose chosen answer has the higher reward (a tie counts half);
    `reward_margin`, its mean lead; `loss` per pair.

    The reward is β times the log-ratio to the reference for dpo, β times the mean log-probability for orpo, as
    TRL's trainers log them.
    """
    margins, losses = [], []
    for batch, sums, counts in _scored(model, pairs, micro_batch_tokens, autocast):
        if objective == "dpo":
            rewards = _dpo_rewards(sums, batch, beta)
            losses.append(_dpo_losses(rewards))
        else:
            means = _mean_log_probs(sums, counts)
            rewards = beta * means
            losses.append(_orpo_losses(means, beta))
        margins.append(rewards[:, 0] - rewards[:, 1])
    margin = torch.cat(margins)
    return {
        "preference_accuracy": ((margin > 0).double() + 0.5 * (margin == 0).double()).mean().item(),
        "reward_margin": margin.mean().item(),
        "loss": torch.cat(losses).double().mean().item(),
    }


def answer_log_probs(model: Any, batch: PairBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each answer, summed over its tokens (B, 2) float64, and how many these are (B, 2).

    Sums are in float64: hundreds of tokens of some nats each leave float32 no room for the small difference to
    the reference. The head runs at scored positions only, at most `losses.chunk_rows` at once.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    batch = batch.to(base.get_input_embeddings().weight.device)
    inputs: dict[str, Any] = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "use_cache": False,
        "pair_groups": batch.groups,
    }
    head = separate_head(base)
    if head is None:
        logits = model(**inputs, logits_to_keep=batch.loss_positions).logits[0]  # (L, V)
        tokens = -F.cross_entropy(logits.float(), batch.labels, reduction="none")
    else:
        hidden = base.get_decoder()(**inputs).last_hidden_state[0].index_select(0, batch.loss_positions)  # (L, D)
        tokens = ChunkedLogProbs.apply(hidden, head.weight, head.bias, batch.labels)
    n = 2 * batch.loss_count
    sums = torch.zeros(n, dtype=torch.float64, device=tokens.device).index_add(0, batch.answer, tokens.double())
    return sums.view(-1, 2), torch.bincount(batch.answer, minlength=n).view(-1, 2)


class ChunkedLogProbs(torch.autograd.Function):
    """log softmax(hidden_i Wᵀ + b)[label_i] for each i, without ever holding the (L, V) logits.

    hidden (L, D), weight (V, D), bias (V,) or None, labels (L,) → (L,) float32. With a frozen head row i of
    hidden's gradient is g_i (W[label_i] − softmax_i W), whose second factor is formed in the forward pass, so the
    head is multiplied twice in all. When the head trains, the backward pass computes each chunk's logits again.
    Under autocast the products run in the autocast type, the softmax in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor
    ) -> torch.Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        head_trains = weight.requires_grad or (bias is not None and bias.requires_grad)
        with torch.autocast(device, enabled=False):
            h, w = hidden.to(dtype), weight.to(dtype)
            b = None if bias is None else bias.to(dtype)
            rows = torch.empty_like(h) if hidden.requires_grad and not head_trains else None
            result = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
            chunk = chunk_rows(len(w), head_trains=head_trains)
            for at in range(0, len(labels), chunk):
                part = slice(at, at + chunk)
                result[part], grad = _log_probs_and_logit_gradient(h[part], w, b, labels[part], rows is not None)
                if rows is not None and grad is not None:
                    rows[part] = grad.to(dtype) @ w
        ctx.save_for_backward(rows, *((h, w, b, labels) if head_trains else ()))
        ctx.dtypes = hidden.dtype, weight.dtype
        return result

    @staticmethod
    def backward(ctx: Any, *grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scale = grad_output[0][:, None]
        rows, *again = ctx.saved_tensors
        hidden_type, weight_type = ctx.dtypes
        if not again:
            return None if rows is None else (rows.float() * scale).to(hidden_type), None, None, None
        h, w, b, labels = again
        grad_hidden = torch.empty_like(h) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(w, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(b, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        chunk = chunk_rows(len(w), head_trains=True)
        for at in range(0, len(labels), chunk):
            part = slice(at, at + chunk)
            grad = _log_probs_and_logit_gradient(h[part], w, b, labels[part], True)[1] * scale[part]
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = grad.to(h.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = grad @ w
            if grad_weight is not None:
                grad_weight += grad.t() @ h[part]
        return (
            None if grad_hidden is None else grad_hidden.to(hidden_type),
            None if grad_weight is None else grad_weight.to(weight_type),
            grad_bias,
            None,
        )


def _log_probs_and_logit_gradient(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, gradient: bool
) -> tuple[torch.Tensor, Any]:
    """Of one chunk: log-probabilities (C,) and, if asked, their gradients one-hot − softmax (C, V), float32."""
    logits = F.linear(hidden, weight, bias).float()
    at = labels[:, None]
    log_z = torch.logsumexp(logits, dim=-1, keepdim=True)
    log_probs = (logits.gather(1, at) - log_z)[:, 0]
    if not gradient:
        return log_probs, None
    grad = logits.sub_(log_z).exp_().neg_()
    return log_probs, grad.scatter_add_(1, at, torch.ones_like(log_z))


def _dpo_rewards(sums: torch.Tensor, batch: PairBatch, beta: float) -> torch.Tensor:
    """β (log π − log π_ref), (B, 2)."""
    if batch.reference is None:
        raise ModelError("DPO needs reference log-probabilities; give the pairs theirs (PairSet.with_reference)")
    return beta * (sums - batch.reference.to(sums.device))


def _dpo_losses(rewards: torch.Tensor) -> torch.Tensor:
    return -F.logsigmoid(rewards[:, 0] - rewards[:, 1]).float()


def _mean_log_probs(sums: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    return sums / counts.clamp(min=1)


def _orpo_losses(means: torch.Tensor, beta: float) -> torch.Tensor:
    # An answer known by heart has 1 − e^l = 0 and infinite odds.
    odds = means - torch.log(-torch.expm1(means.clamp(max=CERTAIN)))
    return (-means[:, 0] - beta * F.logsigmoid(odds[:, 0] - odds[:, 1])).float()


def _scored(
    model: Any, pairs: PairSet, budget: int, autocast: torch.dtype | None
) -> Iterator[tuple[PairBatch, torch.Tensor, torch.Tensor]]:
    """(batch, log-probability sums, token counts) over all pairs in evaluation mode, longest pairs first."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device.type
    lengths = pairs.lengths
    order = np.argsort(-lengths, kind="stable")
    try:
        start = 0
        while start < len(order):
            stop = start + max(1, int(np.searchsorted(np.cumsum(lengths[order[start:]]), budget, side="right")))
            batch = pairs.pack(order[start:stop])
            with nullcontext() if autocast is None else torch.autocast(device, dtype=autocast):
                sums, counts = answer_log_probs(model, batch)
            yield batch, sums, counts
            start = stop
    finally:
        model.train(was_training)


def _fresh_adapters_off(model: Any) -> AbstractContextManager[Any]:
    """Adapters that are still zero change nothing and cost time: leave them out."""
    seconds = [p for name, p in model.named_parameters() if "lora_B" in name]
    fresh = bool(seconds) and hasattr(model, "disable_adapter") and not any(p.detach().any() for p in seconds)
    return model.disable_adapter() if fresh else nullcontext()


def _read_reference(path: Path, pairs: PairSet, key: str) -> np.ndarray | None:
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["log_probs"] if str(arrays["key"]) == _reference_key(pairs, key) else None
    except (OSError, ValueError, KeyError, BadZipFile):  # not what we wrote: it is computed again
        return None


def _reference_key(pairs: PairSet, key: str) -> str:
    digest = hashlib.sha256(key.encode())
    for array in (pairs.input_ids, pairs.loss_mask, pairs.offsets, pairs.prompt_lengths, pairs.chosen_lengths):
        digest.update(array.tobytes())
    return digest.hexdigest()
