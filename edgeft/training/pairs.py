"""Encoded preference pairs and the rows they are packed into, each prompt once.

Shapes: n pairs, N tokens in a row, B pairs in a row, L answer tokens that are scored in a row.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from edgeft.data.preferences import EncodedPair
from edgeft.training.pair_attention import PairGroups, group_pairs


@dataclass(frozen=True)
class PairBatch:
    """One packed row of pairs, each [prompt | chosen | rejected]; positions of both answers follow the prompt's.

    `input_ids`, `position_ids` (1, N); `loss_positions` (L,) row indexes whose next token is scored; `labels`
    (L,) those tokens; `answer` (L,) the answer each belongs to, 2·pair for chosen, 2·pair + 1 for rejected;
    `groups` for attention; `reference` (B, 2) log-probabilities under the reference, or None; `index` of the
    pairs in row order.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    loss_positions: torch.Tensor
    labels: torch.Tensor
    answer: torch.Tensor
    groups: PairGroups
    reference: torch.Tensor | None
    index: np.ndarray

    @property
    def n_tokens(self) -> int:
        return self.input_ids.shape[1]

    @property
    def loss_count(self) -> int:
        return len(self.index)

    def to(self, device: torch.device) -> "PairBatch":
        """The same on `device`."""
        if self.input_ids.device == device:
            return self
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            position_ids=self.position_ids.to(device),
            loss_positions=self.loss_positions.to(device),
            labels=self.labels.to(device),
            answer=self.answer.to(device),
            groups=self.groups.to(device),
            reference=None if self.reference is None else self.reference.to(device),
        )


@dataclass(frozen=True)
class PairSet:
    """Encoded pairs end to end: `input_ids` (N,) int32, `loss_mask` (N,) bool, `offsets` (n+1,) int64, and the
    lengths (n,) int64 of the prompts and the chosen answers; a rejected answer is what is left of its pair.

    `reference` (n, 2) float64: log-probabilities of chosen and rejected under the reference model, or None.
    """

    input_ids: np.ndarray
    loss_mask: np.ndarray
    offsets: np.ndarray
    prompt_lengths: np.ndarray
    chosen_lengths: np.ndarray
    reference: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of prompt, chosen and rejected together, (n,)."""
        return np.diff(self.offsets)

    @staticmethod
    def build(encoded: Iterable[EncodedPair]) -> "PairSet":
        """From pairs as `edgeft.data.preferences.encode_pairs` makes them."""
        pairs = list(encoded)
        lengths = [len(e.prompt) + len(e.chosen) + len(e.rejected) for e in pairs]
        return PairSet(
            np.fromiter((i for e in pairs for part in (e.prompt, e.chosen, e.rejected) for i in part), np.int32),
            np.fromiter(
                (m for e in pairs for part in ([False] * len(e.prompt), e.chosen_mask, e.rejected_mask) for m in part),
                bool,
            ),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            np.array([len(e.prompt) for e in pairs], np.int64),
            np.array([len(e.chosen) for e in pairs], np.int64),
        )

    def with_reference(self, reference: np.ndarray) -> "PairSet":
        """The same pairs with their reference log-probabilities (n, 2)."""
        if reference.shape != (len(self), 2):
            raise ValueError(f"reference has shape {reference.shape}, not ({len(self)}, 2)")
        return replace(self, reference=reference)

    def pack(self, index: np.ndarray) -> PairBatch:
        """The packed row of the pairs `index` (B,)."""
        prompt, chosen = self.prompt_lengths[index], self.chosen_lengths[index]
        rejected = self.lengths[index] - prompt - chosen
        spans = [slice(self.offsets[i], self.offsets[i + 1]) for i in index]
        ids = np.concatenate([self.input_ids[s] for s in spans]).astype(np.int64)
        mask = np.concatenate([self.loss_mask[s] for s in spans])
        position, before, answer = [], [], []
        start = 0
        for pair, (p, c, r) in enumerate(zip(prompt, chosen, rejected, strict=True)):
            position += [np.arange(p + c), np.arange(p, p + r)]
            last = start + p - 1  # the prompt's last token predicts the first of both answers
            before += [start - 1 + np.arange(p + c), [last][:r], start + p + c + np.arange(r - 1)]
            answer += [np.full(p + c, 2 * pair), np.full(r, 2 * pair + 1)]
            start += p + c + r
        learned = np.flatnonzero(mask)
        return PairBatch(
            input_ids=torch.from_numpy(ids)[None],
            position_ids=torch.from_numpy(np.concatenate(position))[None],
            loss_positions=torch.from_numpy(np.concatenate(before).astype(np.int64)[learned]),
            labels=torch.from_numpy(ids[learned]),
            answer=torch.from_numpy(np.concatenate(answer)[learned]),
            groups=group_pairs(prompt, chosen, rejected),
            reference=None if self.reference is None else torch.from_numpy(self.reference[index]),
            index=index,
        )

    def save(self, path: Path) -> None:
        """Write as an uncompressed .npz, the same bytes for the same content; the reference is not in it."""
        np.savez(
            path,
            input_ids=self.input_ids,
            loss_mask=self.loss_mask.astype(np.uint8),
            offsets=self.offsets,
            prompt_lengths=self.prompt_lengths,
            chosen_lengths=self.chosen_lengths,
        )

    @staticmethod
    def load(path: Path) -> "PairSet":
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return PairSet(
                arrays["input_ids"],
                arrays["loss_mask"].astype(bool),
                arrays["offsets"],
                arrays["prompt_lengths"],
                arrays["chosen_lengths"],
            )
