"""Which examples train together, in what order: packed rows of a fixed token budget, the same for a seed.

Shapes: n examples, N tokens in a row, B sequences in a row, L loss positions in a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from edgeft.errors import DataError
from edgeft.training.attention import Group, group_sequences


class BatchLike(Protocol):
    """What the loop needs of a batch: `n_tokens` for the rate, and `loss_count`, what the loss summed over the
    batch is a sum of (tokens, pairs or examples)."""

    @property
    def n_tokens(self) -> int: ...

    @property
    def loss_count(self) -> int: ...


class Examples(Protocol):
    """What the loop needs of a training set: the tokens of each example, and a batch of chosen ones."""

    def __len__(self) -> int: ...

    @property
    def lengths(self) -> np.ndarray: ...

    def pack(self, index: np.ndarray) -> Any: ...


@dataclass(frozen=True)
class TokenSet:
    """Encoded examples end to end: `input_ids` (N,) int32, `loss_mask` (N,) bool, `offsets` (n+1,) int64."""

    input_ids: np.ndarray
    loss_mask: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, (n,)."""
        return np.diff(self.offsets)

    @staticmethod
    def build(encoded: list[tuple[list[int], list[bool]]]) -> "TokenSet":
        """From (ids, mask) pairs."""
        lengths = [len(ids) for ids, _ in encoded]
        return TokenSet(
            np.fromiter((i for ids, _ in encoded for i in ids), dtype=np.int32),
            np.fromiter((m for _, mask in encoded for m in mask), dtype=bool),
            np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        )

    def pack(self, index: np.ndarray) -> "Batch":
        """The packed row of the examples `index` (B,)."""
        return pack(self, index)

    def joined(self, other: "TokenSet") -> "TokenSet":
        """These examples, then those of `other`."""
        return TokenSet(
            np.concatenate([self.input_ids, other.input_ids]),
            np.concatenate([self.loss_mask, other.loss_mask]),
            np.concatenate([self.offsets, other.offsets[1:] + self.offsets[-1]]),
        )

    def save(self, path: Path) -> None:
        """Write as an uncompressed .npz, the same bytes for the same content."""
        np.savez(path, input_ids=self.input_ids, loss_mask=self.loss_mask.astype(np.uint8), offsets=self.offsets)

    @staticmethod
    def load(path: Path) -> "TokenSet":
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return TokenSet(arrays["input_ids"], arrays["loss_mask"].astype(bool), arrays["offsets"])


@dataclass(frozen=True)
class Batch:
    """One packed row.

    `input_ids`, `position_ids` (1, N); `loss_positions` (L,) row indexes whose *next* token carries loss;
    `labels` (L,) those next tokens; `groups` for attention; `index` of the examples, in row order.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    loss_positions: torch.Tensor
    labels: torch.Tensor
    groups: list[Group]
    index: np.ndarray

    @property
    def n_tokens(self) -> int:
        return self.input_ids.shape[1]

    @property
    def loss_count(self) -> int:
        return len(self.labels)


def pack(tokens: TokenSet, index: np.ndarray) -> Batch:
    """The packed row of the examples `index` (B,)."""
    spans = [slice(tokens.offsets[i], tokens.offsets[i + 1]) for i in index]
    lengths = [int(s.stop - s.start) for s in spans]
    ids = np.concatenate([tokens.input_ids[s] for s in spans]).astype(np.int64)
    mask = np.concatenate([tokens.loss_mask[s] for s in spans])
    position = np.concatenate([np.arange(n) for n in lengths])
    # The first token of a sequence has no predecessor, so it can carry no loss.
    targets = np.flatnonzero(mask & (position > 0))
    return Batch(
        input_ids=torch.from_numpy(ids)[None],
        position_ids=torch.from_numpy(position)[None],
        loss_positions=torch.from_numpy(targets - 1),
        labels=torch.from_numpy(ids[targets]),
        groups=group_sequences(lengths),
        index=index,
    )


def plan_epochs(lengths: np.ndarray, *, batch_tokens: int, epochs: float, seed: int) -> list[np.ndarray]:
    """The batches of a whole run: for each optimizer step the indexes of its examples.

    Every epoch is a fresh permutation drawn from (seed, epoch) alone, cut greedily at `batch_tokens`; a
    fractional last epoch is cut after its share of examples. The plan is a pure function of its arguments,
    so a resumed run needs only the step number.

    Raises DataError when an example alone exceeds `batch_tokens` or there is no example.
    """
    if len(lengths) == 0:
        raise DataError("no usable training example is left; see the data stage's summary for what was dropped")
    if int(lengths.max()) > batch_tokens:
        raise DataError(
            f"an example has {int(lengths.max())} tokens, more than train.batch_tokens = {batch_tokens}; "
            "raise batch_tokens or lower data.max_length"
        )
    steps: list[np.ndarray] = []
    epoch = 0
    while epochs - epoch > 1e-9:
        order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
        share = min(1.0, epochs - epoch)
        order = order[: max(1, round(share * len(order)))]
        steps.extend(_cut(order, lengths, batch_tokens))
        epoch += 1
    return steps


def _cut(order: np.ndarray, lengths: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    start = total = 0
    for at, example in enumerate(order):
        if total + lengths[example] > batch_tokens:
            yield order[start:at]
            start, total = at, 0
        total += lengths[example]
    yield order[start:]
