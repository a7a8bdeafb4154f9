"""Causal attention as plain matrix products, for CPUs.

Shapes: N tokens in a packed row, H query heads, K key/value heads, G = H / K, D head width; a group has B sequences
of at most T tokens; a block is a run of b query positions that ends at e.

torch's flash kernel computes whole (T, T) squares in small tiles of its own; a batched matrix product per block of
queries against the keys up to its end skips the half above the diagonal and runs at the speed of the matrix unit.
Probabilities are computed again in the backward pass (Dao et al. 2022, FlashAttention, section 3.1), so memory grows
with T, not with T². The G query heads of a key/value head are stacked as rows, so keys are never repeated.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

BLOCK = 128  # query positions attended at once


@dataclass(frozen=True)
class GroupSpan:
    """Where a group lies among the gathered rows: `batch` = B · K stacks of `query_rows` = G · T query rows and
    T key rows; `queries` and `keys` are its first rows."""

    batch: int
    length: int
    queries: slice
    keys: slice


@dataclass(frozen=True)
class RowLayout:
    """Row numbers that carry a packed row into per-head stacks and back.

    `query_rows` and `key_rows` index (N · H) and (N · K) rows of width D; `query_back` (N · H,) and `key_back`
    (N · K,) say where each of those lies among the gathered ones; `padding` are gathered query rows that stand for no
    token. Within a stack, query rows are ordered by block, then head, then position, so that a block is one slice.
    `gathers` are the groups' (B, T) token numbers, `token_of` (N,) where each token lies in them end to end.
    """

    share: int  # G
    spans: tuple[GroupSpan, ...]
    query_rows: torch.Tensor
    key_rows: torch.Tensor
    query_back: torch.Tensor
    key_back: torch.Tensor
    padding: torch.Tensor
    gathers: tuple[torch.Tensor, ...]
    token_of: torch.Tensor

    @staticmethod
    def build(
        groups: list[tuple[torch.Tensor, torch.Tensor]], heads: int, kv_heads: int, device: torch.device
    ) -> "RowLayout":
        """From each group's token numbers (B, T) and marks of real tokens (B, T)."""
        share = heads // kv_heads
        query_rows, key_rows, real_queries, real_keys, spans = [], [], [], [], []
        n_queries = n_keys = 0
        for gather, real in ((g.cpu(), r.cpu()) for g, r in groups):
            rows, kept = _block_rows(gather, real, kv_heads, share)
            heads_of = torch.arange(kv_heads)[None, :, None]
            query_rows.append(rows.flatten())
            real_queries.append(kept.flatten())
            key_rows.append((gather[:, None] * kv_heads + heads_of).flatten())
            real_keys.append(real[:, None].expand(-1, kv_heads, -1).flatten())
            queries, keys = slice(n_queries, n_queries + rows.numel()), slice(n_keys, n_keys + len(key_rows[-1]))
            spans.append(GroupSpan(len(gather) * kv_heads, gather.shape[1], queries, keys))
            n_queries, n_keys = queries.stop, keys.stop
        tokens = torch.cat([g.flatten() for g, _ in groups]).cpu()
        real_tokens = torch.cat([r.flatten() for _, r in groups]).cpu()
        all_queries, all_keys = torch.cat(query_rows), torch.cat(key_rows)
        kept_queries = torch.cat(real_queries)
        return RowLayout(
            share=share,
            spans=tuple(spans),
            query_rows=all_queries.to(device),
            key_rows=all_keys.to(device),
            query_back=_inverse(all_queries, kept_queries).to(device),
            key_back=_inverse(all_keys, torch.cat(real_keys)).to(device),
            padding=torch.nonzero(~kept_queries)[:, 0].to(device),
            gathers=tuple(g.to(device) for g, _ in groups),
            token_of=_inverse(tokens, real_tokens).to(device),
        )


class PlainAttention(torch.autograd.Function):
    """softmax(scale · q kᵀ + causal mask) v within each sequence of a packed row.

    query (N, H, D), key and value (N, K, D), layout of that row → (N, H, D). Scores are rounded to the inputs' type,
    as transformers' eager attention does; softmax is taken in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: RowLayout, scale: float
    ) -> torch.Tensor:
        q, k, v = _rows(query, layout.query_rows), _rows(key, layout.key_rows), _rows(value, layout.key_rows)
        out = torch.empty_like(q)
        with torch.autocast(query.device.type, enabled=False):
            for span in layout.spans:
                qs, ks, vs, outs = _stacks(span, q, k, v, out)
                for start, end in _blocks(span.length):
                    rows = slice(layout.share * start, layout.share * end)
                    probs = _probabilities(qs[:, rows], ks[:, :end], start, scale)
                    torch.bmm(probs, vs[:, :end], out=outs[:, rows])
        ctx.save_for_backward(q, k, v)
        ctx.layout, ctx.scale, ctx.shapes = layout, scale, (query.shape, key.shape)
        return F.embedding(layout.query_back, out).view(query.shape)

    @staticmethod
    def backward(ctx: Any, *grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        layout, scale = ctx.layout, ctx.scale
        q, k, v = ctx.saved_tensors
        grad = _rows(grad_output[0], layout.query_rows).index_fill_(0, layout.padding, 0.0)
        d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        with torch.autocast(q.device.type, enabled=False):
            for span in layout.spans:
                qs, ks, vs, grads = _stacks(span, q, k, v, grad)
                d_qs, d_ks, d_vs, _ = _stacks(span, d_q, d_k, d_v, grad)
                _backward_stack(span.length, layout.share, scale, (qs, ks, vs, grads), (d_qs, d_ks, d_vs))
        query_shape, key_shape = ctx.shapes
        return (
            F.embedding(layout.query_back, d_q).view(query_shape),
            F.embedding(layout.key_back, d_k).view(key_shape),
            F.embedding(layout.key_back, d_v).view(key_shape),
            None,
            None,
        )


def _backward_stack(
    length: int, share: int, scale: float, inputs: tuple[torch.Tensor, ...], grads: tuple[torch.Tensor, ...]
) -> None:
    """Gradients of one group's stacks, written to `grads`. Later blocks come first: the last sees every key, so it
    fills the whole of the key and value gradients, and the earlier ones add to their beginnings."""
    q, k, v, grad_out = inputs
    d_q, d_k, d_v = grads
    blocks = _blocks(length)
    single = len(blocks) == 1
    # Sums over blocks are formed in float32 at least; a single block needs no sum.
    sum_k = d_k if single else torch.empty_like(d_k, dtype=torch.promote_types(d_k.dtype, torch.float32))
    sum_v = d_v if single else torch.empty_like(sum_k)
    for start, end in reversed(blocks):
        rows = slice(share * start, share * end)
        probs = _probabilities(q[:, rows], k[:, :end], start, scale)
        d_probs = torch.bmm(grad_out[:, rows], v[:, :end].transpose(1, 2))
        d_scores = torch._softmax_backward_data(d_probs, probs, -1, probs.dtype).mul_(scale)
        torch.bmm(d_scores, k[:, :end], out=d_q[:, rows])
        to_k = torch.bmm(d_scores.transpose(1, 2), q[:, rows])
        to_v = torch.bmm(probs.transpose(1, 2), grad_out[:, rows])
        if end == length:
            sum_k.copy_(to_k)
            sum_v.copy_(to_v)
        else:
            sum_k[:, :end] += to_k
            sum_v[:, :end] += to_v
    if not single:
        d_k.copy_(sum_k)
        d_v.copy_(sum_v)


def _probabilities(q: torch.Tensor, k: torch.Tensor, start: int, scale: float) -> torch.Tensor:
    """(stacks, G · b, e) attention of a block's queries to the keys up to its end."""
    scores = torch.bmm(q, k.transpose(1, 2)).mul_(scale)
    size = k.shape[1] - start
    hidden = torch.full((size, size), -torch.inf, dtype=q.dtype, device=q.device).triu_(1)
    scores.view(len(q), -1, size, k.shape[1])[..., start:].add_(hidden)
    return torch.softmax(scores, dim=-1)


def _blocks(length: int) -> list[tuple[int, int]]:
    """Equal runs of at most BLOCK positions, as (start, end)."""
    n = -(-length // BLOCK)
    ends = [length * (i + 1) // n for i in range(n)]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _block_rows(
    gather: torch.Tensor, real: torch.Tensor, kv_heads: int, share: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Query rows of a group and whether they are real, each (B, K, G · T), ordered by block, head, position."""
    heads = torch.arange(kv_heads * share).view(1, kv_heads, share, 1)
    rows = gather[:, None, None] * (kv_heads * share) + heads  # (B, K, G, T)
    kept = real[:, None, None].expand_as(rows)
    blocks = _blocks(gather.shape[1])
    return (
        torch.cat([rows[..., s:e].flatten(2) for s, e in blocks], dim=2),
        torch.cat([kept[..., s:e].flatten(2) for s, e in blocks], dim=2),
    )


def _inverse(rows: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Where each row number of 0 … n − 1 stands in `rows`, padding aside."""
    places = torch.nonzero(kept)[:, 0]
    back = torch.empty(len(places), dtype=torch.int64)
    back[rows[places]] = places
    return back


def _rows(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Gathered rows of width D of an (N, heads, D) tensor; an embedding look-up is torch's fastest gather of rows."""
    return F.embedding(rows, x.reshape(-1, x.shape[-1]))


def _stacks(
    span: GroupSpan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, like_q: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    width = q.shape[-1]
    return (
        q[span.queries].view(span.batch, -1, width),
        k[span.keys].view(span.batch, -1, width),
        v[span.keys].view(span.batch, -1, width),
        like_q[span.queries].view(span.batch, -1, width),
    )
