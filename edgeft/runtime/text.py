"""The text of an answer while its tokens come: characters spread over tokens, and texts that end it."""

from collections.abc import Callable, Sequence

from edgeft.errors import UsageError

UNFINISHED = "\ufffd"
"""What `detokenize` makes of bytes that are no whole character (yet)."""


class TextStream:
    """Collects tokens and gives out the text that is certain.

    `text` is what was given out, without the stop text; `stopped` whether one was met. Altogether it is what
    `detokenize` gives for all tokens at once.
    """

    def __init__(self, detokenize: Callable[[Sequence[int]], str], stops: Sequence[str]) -> None:
        """Raises UsageError for an empty stop text."""
        self.stops = (stops,) if isinstance(stops, str) else tuple(stops)
        if not all(self.stops):
            raise UsageError("stop: an empty text ends every answer at once; leave it out")
        self.text = ""
        self.stopped = False
        self._detokenize = detokenize
        self._known: list[int] = []
        """The last tokens whose text was given out: what they are decides how the next ones are spelled."""
        self._new: list[int] = []
        self._held = ""
        """Text in which a stop text may have begun."""

    def push(self, token: int) -> str:
        """What can be shown now that `token` is there; often a part of a text is held back."""
        self._new.append(token)
        fresh = self._fresh()
        if not fresh or fresh.endswith(UNFINISHED):
            return ""
        self._known, self._new = self._new, []
        return self._show(fresh, self._may_go_on)

    def flush(self) -> str:
        """The rest, when no more tokens come."""
        return "" if self.stopped else self._show(self._fresh(), lambda text: 0)

    def _fresh(self) -> str:
        """Text of the new tokens, spelled as behind those before them."""
        return self._detokenize(self._known + self._new)[len(self._detokenize(self._known)) :]

    def _show(self, fresh: str, n_held: Callable[[str], int]) -> str:
        text = self._held + fresh
        ends = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        self.stopped = bool(ends)
        n_shown = min(ends) if ends else len(text) - n_held(text)
        self._held = text[n_shown:]
        self.text += text[:n_shown]
        return text[:n_shown]

    def _may_go_on(self, text: str) -> int:
        """Characters at the end of `text` that may be the beginning of a stop text."""
        longest = min(len(text), max(map(len, self.stops), default=0))
        ends = (n for n in range(longest, 0, -1) if any(stop.startswith(text[-n:]) for stop in self.stops))
        return next(ends, 0)
