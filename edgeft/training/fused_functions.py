"""The blocks of a transformer layer with LoRA as autograd functions that keep as little as they can.

Shapes: N tokens, D hidden width, F width inside the MLP, r rank; a linear layer has W (out, in), A (r, in), B (out, r).

    y = x Wᵀ + b + s (x Aᵀ) Bᵀ
    dB = s gᵀ (x Aᵀ),   dA = s (g B)ᵀ x,   dx = g W + s (g B) A          with g = dL/dy

W is frozen: dW is never formed. Layers that read the same input share one x Aᵀ over their stacked A. Kept for the
backward pass are the input, x Aᵀ (N, r) and, in the MLP, gate and up; normalised inputs and silu(gate) · up are
computed again (the scheme of Unsloth's fused LoRA MLP, Han & Han 2023, https://github.com/unslothai/unsloth).
Products run in the input's type, or the autocast type where that is on; A and B may be float32 beside it, and their
gradients come out in their own type. RMSNorm is Zhang & Sennrich 2019, SwiGLU is Shazeer 2020.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

Adapters = Sequence[torch.Tensor | None]  # A and B of each projection, A1 B1 A2 B2 …


@dataclass(frozen=True)
class Projection:
    """One frozen linear layer and the scale s of its adapter. `linear` is a torch Linear or a bitsandbytes
    Linear4bit, whose weight is dequantized for one forward or backward pass and then dropped."""

    linear: torch.nn.Module
    scale: float = 1.0

    def weight(self, dtype: torch.dtype) -> torch.Tensor:
        """W (out, in) in `dtype`."""
        weight: Any = self.linear.weight
        state = getattr(weight, "quant_state", None)
        if state is None:
            return weight.detach().to(dtype)
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, state).to(dtype)

    def bias(self, dtype: torch.dtype) -> torch.Tensor | None:
        bias: Any = self.linear.bias
        return None if bias is None else bias.detach().to(dtype)


@dataclass(frozen=True)
class Norm:
    """A frozen RMSNorm: weight (D,) and epsilon."""

    weight: torch.Tensor
    epsilon: float


class LoraProjections(torch.autograd.Function):
    """Every projection of the same input, normalised first where `norm` is given, added to `residual` where given.

    x (…, in), residual (…, out) or None, then A and B of each projection (None, None where it has no adapter)
    → a tuple of (…, out). `residual` goes with a single projection.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        norm: Norm | None,
        projections: tuple[Projection, ...],
        *adapters: torch.Tensor | None,
    ) -> tuple[torch.Tensor, ...]:
        with torch.autocast(x.device.type, enabled=False):
            flat = x.reshape(-1, x.shape[-1]).to(compute_type(x))
            normed, inverse_rms = (flat, None) if norm is None else rms_norm(flat, norm)
            onto = None if residual is None else residual.reshape(-1, residual.shape[-1]).to(flat.dtype)
            outputs, low = project(normed, projections, adapters, onto)
        ctx.save_for_backward(flat, inverse_rms, low, *adapters)
        ctx.norm, ctx.projections, ctx.shape, ctx.dtype = norm, projections, x.shape, x.dtype
        return tuple(y.view(*x.shape[:-1], -1) for y in outputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, inverse_rms, low, *adapters = ctx.saved_tensors
        norm = ctx.norm
        with torch.autocast(flat.device.type, enabled=False):
            grads = [g.reshape(-1, g.shape[-1]).to(flat.dtype) for g in grad_outputs]
            normed = flat if norm is None else scale_rows(flat, inverse_rms, norm)
            d_x, d_adapters = project_backward(
                grads, normed, low, ctx.projections, adapters, need_input=ctx.needs_input_grad[0]
            )
            if d_x is not None and norm is not None:
                d_x = rms_norm_backward(d_x, flat, inverse_rms, norm)
        return (
            None if d_x is None else d_x.view(ctx.shape).to(ctx.dtype),
            grad_outputs[0] if ctx.needs_input_grad[1] else None,
            None,
            None,
            *d_adapters,
        )


class SwigluBlock(torch.autograd.Function):
    """x + down(silu(gate(n)) · up(n)) with n the RMSNorm of x; without `norm`, down(silu(gate(x)) · up(x)).

    x (…, D), `projections` are gate, up and down, then their A and B → (…, D).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        norm: Norm | None,
        projections: tuple[Projection, Projection, Projection],
        *adapters: torch.Tensor | None,
    ) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            flat = x.reshape(-1, x.shape[-1]).to(compute_type(x))
            normed, inverse_rms = (flat, None) if norm is None else rms_norm(flat, norm)
            (gate, up), low = project(normed, projections[:2], adapters[:4])
            inner = F.silu(gate).mul_(up)
            (out,), low_inner = project(inner, projections[2:], adapters[4:], None if norm is None else flat)
        ctx.save_for_backward(flat, inverse_rms, gate, up, low, low_inner, *adapters)
        ctx.norm, ctx.projections, ctx.shape, ctx.dtype = norm, projections, x.shape, x.dtype
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, inverse_rms, gate, up, low, low_inner, *adapters = ctx.saved_tensors
        norm, projections = ctx.norm, ctx.projections
        with torch.autocast(flat.device.type, enabled=False):
            grad = grad_outputs[0].reshape(flat.shape).to(flat.dtype)
            activated = F.silu(gate)
            d_inner, d_down = project_backward(
                [grad], activated * up, low_inner, projections[2:], adapters[4:], need_input=True
            )
            assert d_inner is not None  # it was asked for
            d_gate = torch.ops.aten.silu_backward(d_inner * up, gate)
            d_up = activated.mul_(d_inner)
            normed = flat if norm is None else scale_rows(flat, inverse_rms, norm)
            d_x, d_gate_up = project_backward(
                [d_gate, d_up], normed, low, projections[:2], adapters[:4], need_input=ctx.needs_input_grad[0]
            )
            if d_x is not None and norm is not None:
                d_x = rms_norm_backward(d_x, flat, inverse_rms, norm).add_(grad)
        return (None if d_x is None else d_x.view(ctx.shape).to(ctx.dtype), None, None, *d_gate_up, *d_down)


class Rotate(torch.autograd.Function):
    """Rotary position embedding (Su et al. 2021), halves paired as in transformers' `rotate_half`.

    x (N, heads, D), cos and sin (N, D) → (N, heads, D); the gradient is the rotation by the opposite angle.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotate(grad_outputs[0], cos, -sin), None, None


def compute_type(x: torch.Tensor) -> torch.dtype:
    """The type products with `x` run in: autocast's where it is on, else its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def project(
    x: torch.Tensor, projections: Sequence[Projection], adapters: Adapters, residual: torch.Tensor | None = None
) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """(outputs (N, out) of each projection, x Aᵀ (N, R) over all adapters or None when there is none)."""
    stacked = _stacked_a(adapters, x.dtype)
    low = None if stacked is None else x @ stacked.t()
    outputs, at = [], 0
    for projection, b in zip(projections, adapters[1::2], strict=True):
        weight, bias = projection.weight(x.dtype), projection.bias(x.dtype)
        if residual is None:
            y = F.linear(x, weight, bias)
        else:
            y = torch.addmm(residual if bias is None else residual + bias, x, weight.t())
        if b is not None and low is not None:
            y.addmm_(low[:, at : at + b.shape[1]], b.to(x.dtype).t(), alpha=projection.scale)
            at += b.shape[1]
        outputs.append(y)
    return outputs, low


def project_backward(
    grads: Sequence[torch.Tensor],
    x: torch.Tensor,
    low: torch.Tensor | None,
    projections: Sequence[Projection],
    adapters: Adapters,
    *,
    need_input: bool,
) -> tuple[torch.Tensor | None, list[torch.Tensor | None]]:
    """(dL/dx (N, in) or None when not needed, the gradients of the adapters in their order)."""
    lows: list[torch.Tensor] = []  # s · g B of each adapter
    d_adapters: list[torch.Tensor | None] = []
    at = 0
    for grad, projection, b in zip(grads, projections, adapters[1::2], strict=True):
        if b is None or low is None:
            d_adapters += [None, None]
            continue
        lows.append((grad @ b.to(x.dtype)).mul_(projection.scale))
        d_b = grad.t() @ low[:, at : at + b.shape[1]]
        d_adapters += [None, d_b.to(b.dtype).mul_(projection.scale)]
        at += b.shape[1]
    stacked = _stacked_a(adapters, x.dtype)
    d_low = torch.cat(lows, dim=1) if lows else None
    if d_low is not None:
        pieces = iter((d_low.t() @ x).split([part.shape[1] for part in lows]))
        for i, a in enumerate(adapters[0::2]):
            d_adapters[2 * i] = None if a is None else next(pieces).to(a.dtype)
    if not need_input:
        return None, d_adapters
    d_x = None if d_low is None or stacked is None else d_low @ stacked
    for grad, projection in zip(grads, projections, strict=True):
        weight = projection.weight(x.dtype)
        d_x = grad @ weight if d_x is None else d_x.addmm_(grad, weight)
    return d_x, d_adapters


def rms_norm(x: torch.Tensor, norm: Norm) -> tuple[torch.Tensor, torch.Tensor]:
    """(x / rms(x) · weight (N, D), 1 / rms(x) (N, 1) in float32 at least)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square_()
    inverse_rms = squares.div_(x.shape[-1]).add_(norm.epsilon).rsqrt_()
    return scale_rows(x, inverse_rms, norm), inverse_rms


def scale_rows(x: torch.Tensor, inverse_rms: torch.Tensor, norm: Norm) -> torch.Tensor:
    """x / rms(x) · weight, rounded before the weight is applied, as transformers rounds it."""
    return (x * inverse_rms).to(x.dtype).mul_(norm.weight.detach().to(x.dtype))


def rms_norm_backward(grad: torch.Tensor, x: torch.Tensor, inverse_rms: torch.Tensor, norm: Norm) -> torch.Tensor:
    """dL/dx (N, D) of `rms_norm`, u = weight · grad: (u − x̂ mean(u x̂)) / rms with x̂ = x / rms.

    On CPU this is the backward kernel of LayerNorm with mean 0, which subtracts mean(u) as well; that is put back.
    """
    width = x.shape[-1]
    weight = norm.weight.detach()
    if x.device.type == "cpu":
        d_x = torch.ops.aten.native_layer_norm_backward(
            grad, x, [width], torch.zeros_like(inverse_rms), inverse_rms,
            weight.to(inverse_rms.dtype), None, [True, False, False],
        )[0]  # fmt: skip
        mean = torch.mv(grad, weight.to(grad.dtype))[:, None] / width
        return d_x.add_((mean * inverse_rms).to(d_x.dtype))
    u = (grad * weight).to(inverse_rms.dtype)
    unit = x * inverse_rms
    return ((u - unit * (u * unit).mean(-1, keepdim=True)) * inverse_rms).to(x.dtype)


def _stacked_a(adapters: Adapters, dtype: torch.dtype) -> torch.Tensor | None:
    present = [a.to(dtype) for a in adapters[0::2] if a is not None]
    return None if not present else present[0] if len(present) == 1 else torch.cat(present)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    out = x * cos[:, None]
    swapped = torch.cat((x[..., half:], x[..., :half]), dim=-1)
    signed = torch.cat((-sin[:, :half], sin[:, half:]), dim=-1)
    return out.addcmul_(swapped, signed[:, None])
