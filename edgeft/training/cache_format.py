"""One record of a teacher cache: a distribution over the vocabulary kept as its k most likely tokens.

Shapes: n positions, V vocabulary, k tokens kept, m tokens of the largest k under choice.

A record is packed little-endian, field behind field:

    log_rest  float32            log of the probability of all other tokens together
    low       uint16 × k         the lower 16 bits of the token ids, most likely first
    high      uint8 × ⌈k/2⌉      bits 16 to 19, two ids a byte, the first in the lower half; only where V > 65,536
    values    float16 × k        log-probabilities
  or, 8 bits a value:
    first     float32            log-probability of the first token
    last      float32            and of the k-th
    values    uint8 × k          first − (first − last) · u / 255

What is read back is normalized again, so that it sums to one whatever the rounding was.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from edgeft.errors import ModelError

Values = Literal["uint8", "float16"]
LARGEST_VOCABULARY = 1 << 20
CHOICES = (4, 8, 16, 32, 64, 128)
LOG_TINY = float(np.log(np.finfo(np.float32).tiny))


@dataclass(frozen=True)
class Layout:
    """How positions are stored. Raises ModelError for a vocabulary whose ids do not fit in 20 bits."""

    k: int
    values: Values
    vocabulary: int

    def __post_init__(self) -> None:
        if self.vocabulary > LARGEST_VOCABULARY:
            raise ModelError(
                f"a teacher cache holds token ids below {LARGEST_VOCABULARY:,}, the vocabulary has "
                f"{self.vocabulary:,}; set distill.top_k: null to compute the teacher in every step"
            )

    @property
    def dtype(self) -> np.dtype:
        """Of one record."""
        fields: list[Any] = [("log_rest", "<f4"), ("low", "<u2", (self.k,))]
        if self.vocabulary > 1 << 16:
            fields.append(("high", "u1", ((self.k + 1) // 2,)))
        if self.values == "float16":
            fields.append(("values", "<f2", (self.k,)))
        else:
            fields += [("first", "<f4"), ("last", "<f4"), ("values", "u1", (self.k,))]
        return np.dtype(fields)

    @property
    def bytes_per_token(self) -> int:
        """Size of one record."""
        return int(self.dtype.itemsize)


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

    def first(self, k: int) -> "Top":
        """The same with k ≤ m of the tokens."""
        cut = self.log_probs[:, k:].double()
        parts = torch.cat([cut, self.log_rest[:, None].double()], dim=1)
        p_log_p = self.rest_p_log_p + (cut.exp() * cut).sum(-1)
        return Top(self.tokens[:, :k], self.log_probs[:, :k], parts.logsumexp(-1).float(), p_log_p)


def encode(top: Top, layout: Layout) -> np.ndarray:
    """Records (n,) of distributions with m = k."""
    ids, log_probs = top.tokens.cpu().numpy(), top.log_probs.float().cpu().numpy()
    records = np.zeros(len(ids), layout.dtype)
    records["log_rest"] = top.log_rest.float().cpu().numpy()
    records["low"] = ids & 0xFFFF
    if layout.vocabulary > 1 << 16:
        high = (ids >> 16).astype(np.uint8)
        records["high"] = high[:, 0::2]
        records["high"][:, : layout.k // 2] |= high[:, 1::2] << 4
    if layout.values == "float16":
        records["values"] = np.maximum(log_probs, np.finfo(np.float16).min)
    else:
        first, last = log_probs[:, :1], log_probs[:, -1:]
        records["first"], records["last"] = first[:, 0], last[:, 0]
        step = np.maximum(first - last, np.finfo(np.float32).tiny) / 255
        records["values"] = np.rint((first - log_probs) / step)
    return records


def decode(records: np.ndarray, layout: Layout) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens (n, k) int64, log-probabilities (n, k) and of the rest (n,), float32, which sum to one."""
    ids = records["low"].astype(np.int64)
    if layout.vocabulary > 1 << 16:
        high = records["high"].astype(np.int64)
        ids[:, 0::2] |= (high & 0xF) << 16
        ids[:, 1::2] |= (high[:, : layout.k // 2] >> 4) << 16
    if layout.values == "float16":
        log_probs = records["values"].astype(np.float32)
    else:
        first, last = records["first"][:, None], records["last"][:, None]
        log_probs = first - (first - last) * (records["values"].astype(np.float32) / 255)
    together = torch.from_numpy(np.concatenate([log_probs, records["log_rest"][:, None]], axis=1))
    together = torch.log_softmax(together, dim=-1)
    return torch.from_numpy(ids), together[:, :-1], together[:, -1]


def divergences(top: Top, records: np.ndarray, layout: Layout) -> torch.Tensor:
    """KL(whole ‖ cached) in nats, (n,) float64, where the cached distribution spreads what is left evenly over the
    other tokens. It is what a loss over k + 1 outcomes misses with a student that knows nothing of the rest, and what
    rounding costs."""
    _, log_probs, log_rest = decode(records, layout)
    known = top.log_probs.cpu().double()
    others = max(1, layout.vocabulary - layout.k)
    spread = log_rest.double() - float(np.log(others))
    rest = top.log_rest.cpu().double().exp()
    return (known.exp() * (known - log_probs)).sum(-1) + top.rest_p_log_p.cpu() - rest * spread


def choose_layout(
    distributions: Iterable[torch.Tensor], vocabulary: int, k: int | None, max_kl: float, max_bytes: int
) -> tuple[Layout, float]:
    """The smallest layout whose mean KL(whole ‖ cached) over a sample of log-probabilities (n, V) is `max_kl` nats
    at most, and that KL; where none of at most `max_bytes` a token is, the one that comes nearest.

    `k` given: only the precision of the values is chosen.
    """
    layouts = _candidates(vocabulary, k, max_bytes)
    most = max(layout.k for layout in layouts)
    sums, count = [0.0] * len(layouts), 0
    for log_p in distributions:
        top = Top.of(log_p, most)
        count += len(top.tokens)
        for at, layout in enumerate(layouts):
            cut = top.first(layout.k)
            sums[at] += float(divergences(cut, encode(cut, layout), layout).sum())
    kls = [total / max(1, count) for total in sums]
    fitting = next((at for at, kl in enumerate(kls) if kl <= max_kl), None)
    chosen = fitting if fitting is not None else int(np.argmin(kls))
    return layouts[chosen], kls[chosen]


def _candidates(vocabulary: int, k: int | None, max_bytes: int) -> Sequence[Layout]:
    """Layouts by size."""
    sizes = (k,) if k is not None else CHOICES
    widths: tuple[Values, ...] = ("uint8", "float16")
    layouts = [Layout(min(size, vocabulary), values, vocabulary) for size in sizes for values in widths]
    layouts = sorted(set(layouts), key=lambda layout: layout.bytes_per_token)
    small = [layout for layout in layouts if layout.bytes_per_token <= max_bytes]
    return small if k is None else layouts
