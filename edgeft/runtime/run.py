"""One answer while it is made."""

import threading
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Unpack

import numpy as np

from edgeft.runtime.model import Sampling
from edgeft.runtime.sampling import sampler

if TYPE_CHECKING:
    from edgeft.runtime.constraints import Constraint


class Run:
    """The tokens of one answer so far, and how they go on.

    `reason` is None while more may come, then why no more do: `stop` for an end token or a fulfilled constraint.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        *,
        limit: int,
        ends: frozenset[int],
        cancel: threading.Event | None = None,
        n_prefix: int = 0,
        constraint: "Constraint | None" = None,
        **sampling: Unpack[Sampling],
    ) -> None:
        """At most `limit` tokens, up to one of `ends`. Raises UsageError for sampling values that make no sense."""
        self.ids = list(prompt)
        self.n_prompt = len(self.ids)
        self.n_prefix = n_prefix
        """Tokens of the prompt that later prompts begin with as well; run by themselves and kept."""
        self.n_run = 0
        """Tokens the context has seen."""
        self.limit, self.ends = limit, ends
        self.cancel = cancel
        self.constraint = constraint
        self.forced = deque(constraint.forced() if constraint else ())
        """Tokens that the constraint leaves no choice about."""
        self.reason: Literal["stop", "length", "cancelled"] | None = None
        self.state: bytes | None = None
        """The context behind `n_run` tokens, while another run has it."""
        self._pick = sampler(**sampling)
        self._greedy = not sampling.get("temperature")

    def goes_on(self) -> bool:
        """Whether another token is wanted; sets `reason` when not."""
        if self.reason is not None:
            return False
        if self.cancel is not None and self.cancel.is_set():
            self.reason = "cancelled"
        elif self.constraint is not None and self.constraint.fulfilled and not self.forced:
            self.reason = "stop"
        elif len(self.ids) - self.n_prompt >= self.limit:
            self.reason = "length"
        return self.reason is None

    def take(self, logits: np.ndarray) -> int | None:
        """Pick the next token by the logits (V,) behind the last; None when it ends the answer."""
        if self.constraint is None:
            token = self._pick(logits, self.ids)
        else:
            token = self.constraint.pick(self._pick, logits, self.ids, greedy=self._greedy)
        if token in self.ends:
            self.reason = "stop"
            return None
        if self.constraint is not None:
            self.forced.extend(self.constraint.take(token))
        self.ids.append(token)
        return token

    def take_forced(self) -> int:
        """The next of `forced`."""
        token = self.forced.popleft()
        self.ids.append(token)
        return token
