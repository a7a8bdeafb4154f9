"""Attention over a packed row of prompts and their answers, each prompt computed once.

Shapes: N tokens in the row, H query heads, K key/value heads, D head width; in a group of B sequences
P, A the longest prompt and answer.

The row holds [prompt | answer | answer] of every pair, end to end. A prompt attends causally to itself; an
answer attends to its prompt and causally to itself, never to the other answer. Prompts of similar length
run together, and so do answers, in small padded groups; no (N, N) mask exists.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from edgeft.errors import ModelError
from edgeft.training.attention import use_attention

NAME = "edgeft_pairs"
GROWTH = 4 / 3  # sequences share a group when their lengths differ by less than about this factor


@dataclass(frozen=True)
class AnswerGroup:
    """Answers attended together: row indexes of `queries` (B, A) and `keys` (B, P + A), prompt then answer, and
    `mask` (B, 1, A, P + A), True where a query may look."""

    queries: torch.Tensor
    keys: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class PairGroups:
    """How a row is cut for attention.

    `prompts`: row indexes (B, P) of each group of prompts; `answers`: groups of answers; `back` (N,): where each
    token of the row stands in all groups' padded queries, prompts first, laid end to end; `longest` sequence, in
    tokens.
    """

    prompts: list[torch.Tensor]
    answers: list[AnswerGroup]
    back: torch.Tensor
    longest: int

    def to(self, device: torch.device) -> "PairGroups":
        """The same on `device`."""
        answers = [AnswerGroup(g.queries.to(device), g.keys.to(device), g.mask.to(device)) for g in self.answers]
        return replace(self, prompts=[p.to(device) for p in self.prompts], answers=answers, back=self.back.to(device))


def group_pairs(prompt: np.ndarray, chosen: np.ndarray, rejected: np.ndarray) -> PairGroups:
    """Groups for a row, given the lengths (B,) of its prompts and answers in row order; no prompt is empty."""
    starts = np.concatenate([[0], np.cumsum(prompt + chosen + rejected)])
    back = np.zeros(starts[-1], dtype=np.int64)
    at = 0
    prompts = []
    for members in _alike([(int(p),) for p in prompt]):
        gather, real = _rows(starts[members], prompt[members])
        back[gather[real]] = at + np.flatnonzero(real)
        at += real.size
        prompts.append(torch.from_numpy(gather))
    of_pair = np.repeat(np.arange(len(prompt)), 2)  # (2B,): chosen, rejected of each pair
    lengths = np.stack([chosen, rejected], 1).reshape(-1)
    first = (starts[:-1] + prompt)[of_pair]
    first[1::2] += chosen
    answers = []
    for members in _alike([(int(n), int(prompt[of_pair[i]])) for i, n in enumerate(lengths)]):
        own = of_pair[members]
        queries, real = _rows(first[members], lengths[members])
        asked, seen = _rows(starts[own], prompt[own])
        back[queries[real]] = at + np.flatnonzero(real)
        at += real.size
        width = queries.shape[1]
        causal = np.broadcast_to(np.tri(width, dtype=bool), (len(members), width, width))
        mask = np.concatenate([np.broadcast_to(seen[:, None], (len(members), width, seen.shape[1])), causal], 2)
        keys = np.concatenate([asked, queries], 1)
        answers.append(AnswerGroup(torch.from_numpy(queries), torch.from_numpy(keys), torch.from_numpy(mask)[:, None]))
    longest = int((prompt + np.maximum(chosen, rejected)).max())
    return PairGroups(prompts, answers, torch.from_numpy(back), longest)


def use_pair_attention(model: PreTrainedModel) -> None:
    """Make `model` attend per pair; its forward then needs `pair_groups=`.

    Raises ModelError for an architecture that does not go through transformers' attention interface.
    """
    use_attention(model, NAME, _pair_attention, "train preferences")


def _pair_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, H, N, D)
    key: torch.Tensor,  # (1, K, N, D)
    value: torch.Tensor,  # (1, K, N, D)
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    pair_groups: PairGroups | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Dropout of attention weights is off, as TRL's DPOTrainer has it (`disable_dropout`): policy and reference
    differ by what was learned, not by chance."""
    if pair_groups is None or softcap is not None or s_aux is not None:
        raise ModelError("pair attention needs pair groups and knows neither soft-capped scores nor attention sinks")
    if sliding_window is not None and pair_groups.longest > sliding_window:
        raise ModelError(
            f"a prompt and answer of {pair_groups.longest} tokens are longer than the model's sliding window of "
            f"{sliding_window}; set data.max_length to the window at most"
        )
    # Under autocast the rotary embedding leaves queries and keys in float32; the value has the compute type.
    q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))  # (N, heads, D)
    shared: dict[str, Any] = {"scale": scaling, "enable_gqa": q.shape[1] != k.shape[1]}
    attend = F.scaled_dot_product_attention
    done = [attend(_take(q, at), _take(k, at), _take(v, at), is_causal=True, **shared) for at in pair_groups.prompts]
    done += [
        attend(_take(q, g.queries), _take(k, g.keys), _take(v, g.keys), attn_mask=g.mask, **shared)
        for g in pair_groups.answers
    ]
    padded = torch.cat([attended.transpose(1, 2).reshape(-1, *q.shape[1:]) for attended in done])
    return padded.index_select(0, pair_groups.back)[None], None


def _take(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(N, heads, D) and (B, T) → (B, heads, T, D). The gradient of index_select adds whole rows, which is faster
    than that of x[index]."""
    return x.index_select(0, index.reshape(-1)).view(*index.shape, *x.shape[1:]).transpose(1, 2)


def _alike(sizes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Indexes of `sizes` gathered by size, longest first; the same for the same sizes."""
    buckets: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for at, size in enumerate(sizes):
        buckets[tuple(math.ceil(math.log(max(1, n), GROWTH)) for n in size)].append(at)
    return [np.array(buckets[key]) for key in sorted(buckets, reverse=True)]


def _rows(first: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row indexes (B, T) of sequences that begin at `first`, and which of them are real; padding repeats `first`,
    which must be a token of the row."""
    columns = np.arange(lengths.max())
    real = columns < lengths[:, None]
    return np.where(real, first[:, None] + columns, first[:, None]), real
