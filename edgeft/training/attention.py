"""Attention over a packed row of sequences, without padding and without an (N, N) mask.

Shapes: N tokens in the row, H query heads, K key/value heads, G = H / K, D head width, B sequences in a group,
T the longest of the group.

A packed row holds many short sequences end to end. A block-diagonal mask over the whole row would cost N² work;
here sequences of similar length form small padded groups and causal attention runs per group. Padding is at the
right, where a causal mask hides it from every real token. Which kernel does it is `choose_kernel`'s: on a CPU plain
matrix products (`training.plain_attention`), faster there than torch's flash kernel; on CUDA torch's varlen flash.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import AttentionInterface, PreTrainedModel

from edgeft.errors import ModelError
from edgeft.training.plain_attention import PlainAttention, RowLayout

NAME = "edgeft_packed"
GROUP_FILL = 0.85  # a sequence shorter than this share of the group's longest opens a new group
GROUP_SLACK = 16  # tokens a sequence may always be shorter: tiny groups cost more calls than padding costs work
VARLEN_TYPES = (torch.float16, torch.bfloat16)
Kernel = Literal["plain", "sdpa", "varlen"]


@dataclass(frozen=True)
class Group:
    """Sequences attended together: `gather` (B, T) indexes the row, `real` (B, T) marks true tokens."""

    gather: torch.Tensor
    real: torch.Tensor


class SequenceGroups(list[Group]):
    """The groups of one packed row and what every layer needs of them, worked out once per batch."""

    def __init__(self, groups: Sequence[Group], lengths: Sequence[int]):
        super().__init__(groups)
        self.lengths = list(lengths)
        self._layouts: dict[tuple[int, int, torch.device], RowLayout] = {}
        self._bounds: dict[torch.device, torch.Tensor] = {}

    def layout(self, heads: int, kv_heads: int, device: torch.device) -> RowLayout:
        """Where each row of queries, keys and values goes, for `heads` H over `kv_heads` K."""
        key = (heads, kv_heads, device)
        if key not in self._layouts:
            self._layouts[key] = RowLayout.build([(g.gather, g.real) for g in self], heads, kv_heads, device)
        return self._layouts[key]

    def bounds(self, device: torch.device) -> torch.Tensor:
        """Where the sequences begin and end in the row, (n + 1,) int32, as varlen attention takes them."""
        if device not in self._bounds:
            ends = torch.tensor([0, *self.lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
            self._bounds[device] = ends.to(device)
        return self._bounds[device]


def group_sequences(lengths: list[int], device: torch.device | str = "cpu") -> SequenceGroups:
    """Groups for the sequences of a packed row, given their lengths in row order."""
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    groups: list[Group] = []
    at = 0
    while at < len(order):
        longest = lengths[order[at]]
        least = min(GROUP_FILL * longest, longest - GROUP_SLACK)
        members = [i for i in order[at:] if lengths[i] >= least]
        at += len(members)
        columns = torch.arange(longest)
        first = torch.tensor([starts[i] for i in members])[:, None]
        count = torch.tensor([lengths[i] for i in members])[:, None]
        real = columns[None, :] < count
        gather = torch.where(real, first + columns[None, :], first)
        groups.append(Group(gather.to(device), real.to(device)))
    return SequenceGroups(groups, lengths)


def use_packed_attention(model: PreTrainedModel) -> None:
    """Make `model` attend per sequence; its forward then needs `sequence_groups=`.

    Raises ModelError for an architecture that does not go through transformers' attention interface.
    """
    use_attention(model, NAME, _packed_attention, "train it")


def use_attention(model: PreTrainedModel, name: str, function: Callable[..., Any], what: str) -> None:
    """Register `function` with transformers under `name` and make `model` attend by it.

    Raises ModelError, which says `what` needs another class, where the model has no such interface.
    """
    AttentionInterface.register(name, function)
    try:
        model.set_attn_implementation(name)
    except (ValueError, KeyError) as error:
        raise ModelError(
            f"{type(model).__name__} does not take a custom attention function ({error}); "
            f"{what} with a model class that uses transformers' AttentionInterface"
        ) from error


@contextmanager
def unpacked_attention(model: PreTrainedModel) -> Iterator[None]:
    """Attend to padded batches with a key/value cache for a while, as generation needs it."""
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def choose_kernel(device: str, dtype: torch.dtype, dropout: float) -> Kernel:
    """`plain` on a CPU, where blocked matrix products took half the time of torch's flash kernel at 300 tokens and
    heads of 64; `varlen` on CUDA in half precision; `sdpa` for the rest, and for dropout."""
    if dropout > 0.0:
        return "sdpa"
    if device == "cpu":
        return "plain"
    return "varlen" if device == "cuda" and dtype in VARLEN_TYPES else "sdpa"


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    groups: Sequence[Group],
    *,
    scale: float,
    dropout: float = 0.0,
    kernel: Kernel | None = None,
) -> torch.Tensor:
    """Causal attention within each sequence. query (N, H, D), key and value (N, K, D) → (N, H, D)."""
    known = groups if isinstance(groups, SequenceGroups) else SequenceGroups(groups, ())
    kernel = kernel or choose_kernel(query.device.type, query.dtype, dropout)
    if kernel == "varlen" and known.lengths:
        return _varlen(query, key, value, known, scale)
    layout = known.layout(query.shape[1], key.shape[1], query.device)
    if kernel == "plain":
        return PlainAttention.apply(query, key, value, layout, scale)
    return _sdpa(query, key, value, layout, scale, dropout)


def check_window(groups: Sequence[Group], window: int | None) -> None:
    """Raises ModelError when a sequence does not fit in the model's sliding window, which is not computed here."""
    longest = max(group.gather.shape[1] for group in groups)
    if window is not None and longest > window:
        raise ModelError(
            f"a sequence of {longest} tokens is longer than the model's sliding window of {window}; "
            "set data.max_length to the window at most"
        )


def _packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, H, N, D)
    key: torch.Tensor,  # (1, K, N, D)
    value: torch.Tensor,  # (1, K, N, D)
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sequence_groups: Sequence[Group] | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    if sequence_groups is None or softcap is not None:
        raise ModelError("packed attention needs sequence groups and knows no soft-capping of scores")
    check_window(sequence_groups, sliding_window)
    # Under autocast the rotary embedding leaves queries and keys in float32; the value has the compute type.
    q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))  # (N, heads, D)
    scale = scaling if scaling is not None else q.shape[-1] ** -0.5
    return attend(q, k, v, sequence_groups, scale=scale, dropout=dropout)[None], None


def _varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, groups: SequenceGroups, scale: float
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    bounds, longest = groups.bounds(query.device), max(groups.lengths)
    q, k, v = query.contiguous(), key.contiguous(), value.contiguous()
    out = varlen_attn(
        q, k, v, bounds, bounds, longest, longest,
        scale=scale, window_size=(-1, 0), enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    assert isinstance(out, torch.Tensor)  # an auxiliary output comes along only on request
    return out


def _sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: RowLayout, scale: float, dropout: float
) -> torch.Tensor:
    attended = []
    for gather in layout.gathers:  # (B, T)
        out = torch.nn.functional.scaled_dot_product_attention(
            query[gather].transpose(1, 2),
            key[gather].transpose(1, 2),
            value[gather].transpose(1, 2),
            is_causal=True,
            scale=scale,
            dropout_p=dropout,
            enable_gqa=query.shape[1] != key.shape[1],
        ).transpose(1, 2)  # (B, T, H, D)
        attended.append(out.flatten(0, 1))
    return torch.cat(attended).index_select(0, layout.token_of)
