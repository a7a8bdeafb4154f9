"""One answer while it is made."""

import threading
from collections.abc import Sequence
from typing import Literal

from edgeft.runtime.sampling import Pick


class Run:
    """The tokens of one answer so far, and how they go on.

    `reason` is None while more may come, then why no more do: `stop` for an end token or a fulfilled constraint.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        *,
        limit: int,
        pick: Pick,
        ends: frozenset[int],
        cancel: threading.Event | None = None,
        n_prefix: int = 0,
    ) -> None:
        self.ids = list(prompt)
        self.n_prompt = len(self.ids)
        self.n_prefix = n_prefix
        """Tokens of the prompt that later prompts begin with as well; run by themselves and kept."""
        self.n_run = 0
        """Tokens the context has seen."""
        self.limit = limit
        self.pick, self.ends = pick, ends
        self.cancel = cancel or threading.Event()
        self.reason: Literal["stop", "length", "cancelled"] | None = None
        self.state: bytes | None = None
        """The context behind `n_run` tokens, while another run has it."""

    def goes_on(self) -> bool:
        """Whether another token is wanted; sets `reason` when not."""
        if self.reason is None and self.cancel.is_set():
            self.reason = "cancelled"
        if self.reason is None and len(self.ids) - self.n_prompt >= self.limit:
            self.reason = "length"
        return self.reason is None

    def take(self, token: int) -> int | None:
        """Add a token; None when it ends the answer."""
        if token in self.ends:
            self.reason = "stop"
            return None
        self.ids.append(token)
        return token
