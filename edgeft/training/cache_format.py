"""A teacher's distributions over the vocabulary, each kept as its most likely tokens.

Shapes: n positions, V vocabulary, m tokens of which a position keeps its first k ≤ m, N = Σ k of all positions.

Where a teacher is certain a few tokens hold all but a thousandth of the mass, where it is not a thousand may be
needed: so each position keeps as few tokens as leave at most `tail` of the mass outside.

A shard is packed little-endian, field behind field:

    positions, n records
      count     uint32             k
      log_rest  float32            log of the probability of all other tokens together
      first     float32            8 bits a value: log-probability of the first token
      last      float32            and of the k-th
    low         uint16 × N         the lower 16 bits of the token ids, most likely first, position behind position
    values      float16 × N        log-probabilities
      or        uint8 × N          first − (first − last) · u / 255
    high        uint8 × ⌈N/2⌉      bits 16 to 19, two ids a byte, the first in the lower half; only where V > 65,536

What is read back is normalized again, so that it sums to one whatever the rounding was.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from edgeft.errors import ModelError

Values = Literal["uint8", "float16"]
LARGEST_VOCABULARY = 1 << 20
MOST = (64, 256, 1024)
TAILS = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
LOG_TINY = float(np.log(np.finfo(np.float32).tiny))


@dataclass(frozen=True)
class Layout:
    """How positions are stored: at most `most` tokens each, fewer where less than `tail` of the mass is outside then
    (0: always `most`). Raises ModelError for a vocabulary whose ids do not fit in 20 bits."""

    most: int
    values: Values
    vocabulary: int
    tail: float = 0.0

    def __post_init__(self) -> None:
        if self.vocabulary > LARGEST_VOCABULARY:
            raise ModelError(
                f"a teacher cache holds token ids below {LARGEST_VOCABULARY:,}, the vocabulary has "
                f"{self.vocabulary:,}; set distill.top_k: null to compute the teacher in every step"
            )

    @property
    def wide(self) -> bool:
        """Whether an id takes more than 16 bits."""
        return self.vocabulary > 1 << 16

    @property
    def head(self) -> np.dtype:
        """Of what is stored of a position beside its tokens."""
        ranges = [("first", "<f4"), ("last", "<f4")] if self.values == "uint8" else []
        return np.dtype([("count", "<u4"), ("log_rest", "<f4"), *ranges])

    @property
    def value(self) -> np.dtype:
        """Of one log-probability."""
        return np.dtype("u1" if self.values == "uint8" else "<f2")

    def n_bytes(self, positions: int, tokens: int) -> int:
        """Size of a shard of n positions that keep N tokens in all."""
        high = -(-tokens // 2) if self.wide else 0
        return positions * self.head.itemsize + tokens * (2 + self.value.itemsize) + high


@dataclass(frozen=True)
class Top:
    """The m most likely tokens of whole distributions, most likely first: `tokens`, `log_probs` (n, m), and
    `log_rest` (n,); `rest_p_log_p` (n,) is Σ p log p over the rest, float64."""

    tokens: torch.Tensor
    log_probs: torch.Tensor
    log_rest: torch.Tensor
    rest_p_log_p: torch.Tensor

    @staticmethod
    def of(log_p: torch.Tensor, m: int) -> "Top":
        """From log-probabilities (n, V), which are overwritten."""
        log_probs, tokens = log_p.topk(m, dim=-1)
        rest = log_p.scatter_(1, tokens, LOG_TINY)
        p = rest.exp()
        p_log_p = rest.mul_(p).sum(-1, dtype=torch.float64)
        return Top(tokens, log_probs, p.sum(-1).log().clamp(min=LOG_TINY), p_log_p)

    @cached_property
    def outside(self) -> np.ndarray:
        """Mass outside the first k tokens, k = 0 to m: (n, m + 1), float64."""
        parts = torch.cat([self.log_probs, self.log_rest[:, None]], dim=1).double().exp()
        return parts.flip(-1).cumsum(-1).flip(-1).cpu().numpy()

    def counts(self, layout: Layout) -> np.ndarray:
        """k of each position, (n,)."""
        most = min(layout.most, self.tokens.shape[1])
        if layout.tail <= 0.0:
            return np.full(len(self.tokens), most)
        return np.clip((self.outside[:, :most] > layout.tail).sum(-1), 1, most)


@dataclass(frozen=True)
class Records:
    """Positions as they are stored: `heads` (n,) of `Layout.head`, `ids` (N,) uint32, `values` (N,)."""

    heads: np.ndarray
    ids: np.ndarray
    values: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Tokens of each position, (n,)."""
        return self.heads["count"].astype(np.int64)

    @staticmethod
    def join(parts: Sequence["Records"]) -> "Records":
        """One behind the other."""
        fields = ((getattr(part, name) for part in parts) for name in ("heads", "ids", "values"))
        return Records(*(np.concatenate(list(field)) for field in fields))

    def ordered(self, order: np.ndarray) -> "Records":
        """The positions `order` (n,)."""
        counts = self.counts
        starts = np.cumsum(counts) - counts
        wanted = counts[order]
        within = np.arange(wanted.sum()) - np.repeat(np.cumsum(wanted) - wanted, wanted)
        at = np.repeat(starts[order], wanted) + within
        return Records(self.heads[order], self.ids[at], self.values[at])


class Shard:
    """The positions of some examples, read from the bytes (B,) of a file where they are."""

    def __init__(self, content: np.ndarray, positions: int, layout: Layout):
        self.content, self.layout = content, layout
        at = positions * layout.head.itemsize
        self.heads = content[:at].view(layout.head)
        self.bounds = np.concatenate([[0], np.cumsum(self.heads["count"], dtype=np.int64)])
        n = int(self.bounds[-1])
        self.low = content[at : at + 2 * n].view("<u2")
        at += 2 * n
        self.values = content[at : at + n * layout.value.itemsize].view(layout.value)
        self.high = content[at + self.values.nbytes :]

    def read(self, start: int, stop: int) -> Records:
        """The positions [start, stop)."""
        first, last = int(self.bounds[start]), int(self.bounds[stop])
        ids = self.low[first:last].astype(np.uint32)
        if self.layout.wide:
            packed = self.high[first // 2 : (last + 1) // 2]
            pairs = np.stack([packed & 0xF, packed >> 4], axis=1).reshape(-1)
            ids |= pairs[first % 2 : first % 2 + len(ids)].astype(np.uint32) << 16
        return Records(self.heads[start:stop], ids, self.values[first:last])


def shard_bytes(records: Records, layout: Layout) -> bytes:
    """What `Shard` reads."""
    parts = [records.heads.tobytes(), (records.ids & 0xFFFF).astype("<u2").tobytes(), records.values.tobytes()]
    if layout.wide:
        high = (records.ids >> 16).astype(np.uint8)
        high = np.append(high, np.zeros(len(high) % 2, np.uint8))
        parts.append((high[0::2] | high[1::2] << 4).tobytes())
    return b"".join(parts)


def encode(top: Top, layout: Layout) -> Records:
    """The first tokens of each position, as many as the layout keeps."""
    log_probs = top.log_probs.float().cpu().numpy()
    counts = top.counts(layout)
    kept = np.arange(log_probs.shape[1]) < counts[:, None]
    rows = np.arange(len(counts))
    outside = top.outside[rows, counts]
    heads = np.zeros(len(counts), layout.head)
    heads["count"] = counts
    heads["log_rest"] = np.log(np.maximum(outside, np.finfo(np.float32).tiny))
    if layout.values == "float16":
        values = np.maximum(log_probs[kept], np.finfo(np.float16).min).astype("<f2")
    else:
        heads["first"], heads["last"] = log_probs[:, 0], log_probs[rows, counts - 1]
        step = np.maximum(heads["first"] - heads["last"], np.finfo(np.float32).tiny) / 255
        values = np.rint((np.repeat(heads["first"], counts) - log_probs[kept]) / np.repeat(step, counts))
    return Records(heads, top.tokens.cpu().numpy()[kept].astype(np.uint32), values.astype(layout.value))


def decode(records: Records) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens (N,) int64 and log-probabilities (N,), and of the rest (n,), float32, which sum to one."""
    heads, counts = records.heads, records.counts
    log_probs = records.values.astype(np.float32)
    if "first" in (heads.dtype.names or ()):
        step = (heads["first"] - heads["last"]) / 255
        log_probs = np.repeat(heads["first"], counts) - np.repeat(step, counts) * log_probs
    starts = np.cumsum(counts) - counts
    mass = np.exp(heads["log_rest"], dtype=np.float64)
    if len(counts):
        mass += np.add.reduceat(np.exp(log_probs, dtype=np.float64), starts)
    log_mass = np.log(mass).astype(np.float32)
    return (
        torch.from_numpy(records.ids.astype(np.int64)),
        torch.from_numpy(log_probs - np.repeat(log_mass, counts)),
        torch.from_numpy(heads["log_rest"] - log_mass),
    )


def divergences(top: Top, records: Records, layout: Layout) -> torch.Tensor:
    """KL(whole ‖ cached) in nats, (n,) float64, where the cached distribution spreads what is left evenly over the
    other tokens. It is what a loss over k + 1 outcomes misses with a student that knows nothing of the rest, and what
    rounding costs."""
    _, log_probs, log_rest = decode(records)
    counts = torch.from_numpy(records.counts)
    known = top.log_probs.cpu().double()
    kept = torch.arange(known.shape[1]) < counts[:, None]
    cached = known.clone()
    cached[kept] = log_probs.double()
    spread = log_rest.double() - (layout.vocabulary - counts).clamp(min=1).double().log()
    cached = torch.where(kept, cached, spread[:, None])
    rest = top.log_rest.cpu().double().exp()
    return (known.exp() * (known - cached)).sum(-1) + top.rest_p_log_p.cpu() - rest * spread


@dataclass(frozen=True)
class Choice:
    """A layout with what it came to on a sample: mean KL(whole ‖ cached) in nats, and bytes a token."""

    layout: Layout
    kl: float
    bytes_per_token: float


def choose_layout(
    distributions: Iterable[torch.Tensor], vocabulary: int, k: int | None, max_kl: float, max_bytes: float
) -> Choice:
    """The smallest layout whose mean KL(whole ‖ cached) over a sample of log-probabilities (n, V) is `max_kl` nats
    at most; where none of at most `max_bytes` a token is, the one that comes nearest.

    `k` given: every position keeps that many, and only the precision of the values is chosen.
    """
    layouts = _candidates(vocabulary, k)
    most = max(layout.most for layout in layouts)
    kls, sizes, count = np.zeros(len(layouts)), np.zeros(len(layouts)), 0
    for log_p in distributions:
        top = Top.of(log_p, most)
        count += len(top.tokens)
        for at, layout in enumerate(layouts):
            records = encode(top, layout)
            kls[at] += float(divergences(top, records, layout).sum())
            sizes[at] += layout.n_bytes(len(records.heads), len(records.ids))
    choices = [Choice(*each) for each in zip(layouts, kls / max(1, count), sizes / max(1, count), strict=True)]
    choices.sort(key=lambda choice: choice.bytes_per_token)
    small = [choice for choice in choices if k is not None or choice.bytes_per_token <= max_bytes] or choices[:1]
    return next((choice for choice in small if choice.kl <= max_kl), min(small, key=lambda choice: choice.kl))


def _candidates(vocabulary: int, k: int | None) -> list[Layout]:
    widths: tuple[Values, ...] = ("uint8", "float16")
    shapes: Any = [(k, 0.0)] if k is not None else [(most, tail) for most in MOST for tail in TAILS]
    return sorted(
        {Layout(min(most, vocabulary), values, vocabulary, tail) for most, tail in shapes for values in widths},
        key=lambda layout: (layout.most, layout.values, layout.tail),
    )
