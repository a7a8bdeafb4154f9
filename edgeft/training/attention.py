"""Attention over a packed row of sequences, without padding and without an (N, N) mask.

Shapes: N tokens in the row, H query heads, K key/value heads, D head width, B sequences in a group,
T the longest of the group.

A packed row holds many short sequences end to end. A block-diagonal mask over the whole row would cost
N² work; here sequences of similar length are gathered into small padded groups, causal attention runs
per group, and the results are scattered back. Padding is at the right, where a causal mask hides it
from every real token.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel

from edgeft.errors import ModelError

NAME = "edgeft_packed"
GROUP_FILL = 0.75  # a sequence shorter than this share of the group's longest opens a new group


@dataclass(frozen=True)
class Group:
    """Sequences attended together: `gather` (B, T) indexes the row, `real` (B, T) marks true tokens."""

    gather: torch.Tensor
    real: torch.Tensor


def group_sequences(lengths: list[int], device: torch.device | str = "cpu") -> list[Group]:
    """Groups for the sequences of a packed row, given their lengths in row order."""
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    groups: list[Group] = []
    at = 0
    while at < len(order):
        longest = lengths[order[at]]
        members = [i for i in order[at:] if lengths[i] >= GROUP_FILL * longest]
        at += len(members)
        columns = torch.arange(longest)
        first = torch.tensor([starts[i] for i in members])[:, None]
        count = torch.tensor([lengths[i] for i in members])[:, None]
        real = columns[None, :] < count
        gather = torch.where(real, first + columns[None, :], first)
        groups.append(Group(gather.to(device), real.to(device)))
    return groups


def use_packed_attention(model: PreTrainedModel) -> None:
    """Make `model` attend per sequence; its forward then needs `sequence_groups=`.

    Raises ModelError for an architecture that does not go through transformers' attention interface.
    """
    AttentionInterface.register(NAME, _packed_attention)
    try:
        model.set_attn_implementation(NAME)
    except (ValueError, KeyError) as error:
        raise ModelError(
            f"{type(model).__name__} does not take a custom attention function ({error}); "
            "train it with a model class that uses transformers' AttentionInterface"
        ) from error


def _packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, H, N, D)
    key: torch.Tensor,  # (1, K, N, D)
    value: torch.Tensor,  # (1, K, N, D)
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sequence_groups: list[Group] | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    if sequence_groups is None or softcap is not None:
        raise ModelError("packed attention needs sequence groups and knows no soft-capping of scores")
    # Under autocast the rotary embedding leaves queries and keys in float32; the value has the compute type.
    q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))  # (N, heads, D)
    out = torch.empty_like(q)
    gqa = q.shape[1] != k.shape[1]
    for group in sequence_groups:
        length = group.gather.shape[1]
        if sliding_window is not None and length > sliding_window:
            raise ModelError(
                f"a sequence of {length} tokens is longer than the model's sliding window of {sliding_window}; "
                "set data.max_length to the window at most"
            )
        attended = torch.nn.functional.scaled_dot_product_attention(
            q[group.gather].transpose(1, 2),
            k[group.gather].transpose(1, 2),
            v[group.gather].transpose(1, 2),
            is_causal=True,
            scale=scaling,
            dropout_p=dropout,
            enable_gqa=gqa,
        ).transpose(1, 2)  # (B, T, H, D)
        out[group.gather[group.real]] = attended[group.real]
    return out[None], None
