"""Losses, each *summed* over tokens; the loop divides once by the token count of the global batch.

Shapes: N tokens in a packed row, L positions that carry loss, C positions of a chunk, D hidden width,
V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from edgeft.training.batches import Batch
from edgeft.training_memory import LOGIT_BYTES

CHUNK = 1024  # positions of a chunk at most
LEAST_ROWS = 64  # and at least: fewer would read the head too often
HEAD_ROWS = 256  # at least, when the head trains
OUTPUT_SCALERS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


def next_token_loss_sum(model: Any, batch: Batch) -> torch.Tensor:
    """Cross-entropy in nats, summed over the batch's loss tokens; a scalar in float32.

    The language-model head runs only where a token carries loss, and never over more than
    `LOGIT_BYTES` of them at once: neither (N, V) nor (L, V) logits exist.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    inputs = model_inputs(batch)
    head = separate_head(base)
    if head is None:
        logits = model(**inputs, logits_to_keep=batch.loss_positions).logits[0]  # (L, V)
        return F.cross_entropy(logits.float(), batch.labels, reduction="sum")
    hidden = base.get_decoder()(**inputs).last_hidden_state[0, batch.loss_positions]  # (L, D)
    return ChunkedCrossEntropy.apply(hidden, head.weight, head.bias, batch.labels)


def model_inputs(batch: Batch) -> dict[str, Any]:
    """What a model with packed attention is called with."""
    return {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "use_cache": False,
        "sequence_groups": batch.groups,
    }


def separate_head(base: Any) -> torch.nn.Linear | None:
    """The language-model head, where its product with the hidden states is all there is to the logits.

    None where the head is adapted or the architecture transforms its logits: the model has to compute them.
    """
    head = base.get_output_embeddings()
    transformed = any(getattr(base.config, name, None) for name in OUTPUT_SCALERS)
    return head if type(head) is torch.nn.Linear and not transformed else None


def chunk_rows(vocabulary: int, *, head_trains: bool) -> int:
    """Positions whose logits are computed at once over `vocabulary` V; more where each chunk adds to the whole
    gradient (V, D) of the head."""
    return min(CHUNK, max(HEAD_ROWS if head_trains else LEAST_ROWS, LOGIT_BYTES // (4 * vocabulary)))


LossAndGradient = Callable[[slice, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""(positions of a chunk, their logits (C, V) in float32) -> the loss summed over them, and its gradient (C, V). It may
write over the logits."""


def sum_by_chunks(
    ctx: Any,
    hidden: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    loss_and_gradient: LossAndGradient,
) -> torch.Tensor:
    """The forward pass of a loss over logits hidden Wᵀ + b, gradients taken with it, chunk by chunk; a float32 scalar.

    hidden (L, D), weight (V, D), bias (V,) or None; weight None: hidden are the logits (L, V). With the gradient with
    respect to the logits at hand per chunk, those of hidden and weight need no stored logits (the idea of Liger
    Kernel's fused linear cross-entropy, Hsu et al. 2024). Under autocast the products run in the autocast type, the
    loss in float32. `ctx` keeps what `scaled_gradients` gives in the backward pass.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    head_trains = weight is not None and weight.requires_grad
    bias_trains = bias is not None and bias.requires_grad
    with torch.autocast(device, enabled=False):
        h, w, b = hidden.to(dtype), _cast(weight, dtype), _cast(bias, dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(h) if hidden.requires_grad else None
        grad_weight = torch.zeros_like(w, dtype=torch.float32) if w is not None and head_trains else None
        grad_bias = torch.zeros_like(b, dtype=torch.float32) if b is not None and bias_trains else None
        size = chunk_rows(h.shape[1] if w is None else len(w), head_trains=head_trains)
        for at in range(0, len(h), size):
            part = slice(at, at + size)
            loss, grad = loss_and_gradient(part, h[part].float() if w is None else F.linear(h[part], w, b).float())
            total += loss
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = grad.to(dtype)
            if grad_hidden is not None:
                grad_hidden[part] = grad if w is None else grad @ w
            if grad_weight is not None:
                grad_weight += grad.t() @ h[part]
    ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
    ctx.dtypes = hidden.dtype, None if weight is None else weight.dtype
    return total


def scaled_gradients(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """What `sum_by_chunks` kept, times the gradient of what the loss became: of hidden, weight and bias."""
    grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
    hidden_type, weight_type = ctx.dtypes
    return (
        None if grad_hidden is None else (grad_hidden * scale).to(hidden_type),
        None if grad_weight is None else (grad_weight * scale).to(weight_type),
        None if grad_bias is None else grad_bias * scale,
    )


def _cast(tensor: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if tensor is None else tensor.to(dtype)


class ChunkedCrossEntropy(torch.autograd.Function):
    """sum_i −log softmax(hidden_i Wᵀ + b)[label_i]; see `sum_by_chunks`.

    hidden (L, D), weight (V, D), bias (V,) or None, labels (L,) → scalar float32. The gradient with respect to
    the logits is softmax − one-hot.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor
    ) -> torch.Tensor:
        return sum_by_chunks(ctx, hidden, weight, bias, lambda part, logits: _cross_entropy(logits, labels[part]))

    @staticmethod
    def backward(ctx: Any, *grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (*scaled_gradients(ctx, grad_output[0]), None)


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.arange(len(logits), device=logits.device)
    grad = torch.softmax(logits, dim=-1)
    # log Z from the largest logit, whose probability is exp(largest − log Z): no second pass of exp.
    log_z = logits.amax(-1) - grad.amax(-1).log()
    loss = (log_z - logits[rows, labels]).sum()
    grad[rows, labels] -= 1.0
    return loss, grad
