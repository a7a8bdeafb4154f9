"""Answering messages: from the template to the prompt, and from tokens to text and tool calls."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from edgeft.runtime.history import Overflow, fitted
from edgeft.runtime.model import Answer, Message, Options
from edgeft.runtime.run import Run
from edgeft.runtime.sampling import sampler
from edgeft.runtime.text import TextStream
from edgeft.runtime.tool_calls import parse_calls

if TYPE_CHECKING:
    from edgeft.runtime.base import TextModel

MAX_NEW_TOKENS = 128
MIN_PREFIX = 32
"""Tokens from which on a common beginning of prompts is worth being kept."""

Tools = Sequence[Mapping[str, Any]]


class AnswerStream:
    """The text of an answer, piece by piece. Closing it, or leaving its `with` block, ends the answer.

    `answer` is what `chat` would have returned, of the part that was asked for.
    """

    def __init__(
        self, tokens: Iterator[int], run: Run, text: TextStream, *, tools: Tools | None, started_s: float
    ) -> None:
        self._run, self._text, self._tools = run, text, tools
        self._started_s, self._ttft_ms = started_s, 0.0
        self._pieces = self._read(tokens)

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """End the answer; closing twice does no harm."""
        self._pieces.close()  # type: ignore[attr-defined]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def answer(self) -> Answer:
        """The answer so far; whole once the iterator is at its end."""
        calls = parse_calls(self._text.text, self._tools) if self._tools else ()
        reason = self._run.reason or "cancelled"
        return Answer(
            text=self._text.text,
            finish_reason="tool_calls" if calls and reason == "stop" else reason,
            n_prompt=self._run.n_prompt,
            n_new=len(self._run.ids) - self._run.n_prompt,
            tool_calls=calls,
            ttft_ms=self._ttft_ms,
        )

    def _read(self, tokens: Iterator[int]) -> Iterator[str]:
        with closing(tokens):  # type: ignore[type-var]
            for token in tokens:
                self._ttft_ms = self._ttft_ms or (time.perf_counter() - self._started_s) * 1e3
                piece = self._text.push(token)
                if self._text.stopped:
                    self._run.reason = "stop"
                if piece:
                    yield piece
                if self._text.stopped:
                    return
        if rest := self._text.flush():
            yield rest
        if self._text.stopped:
            self._run.reason = "stop"


def open_answer(
    model: "TextModel",
    messages: Sequence[Message],
    options: Options,
    *,
    tools: Tools | None,
    overflow: Overflow,
    at_once: bool,
) -> AnswerStream:
    """Begin to answer `messages`; see `Model.chat`. `at_once` as of `TextModel.answer_tokens`."""
    started_s = time.perf_counter()
    settings: dict[str, Any] = dict(options)
    n_new = settings.pop("max_new_tokens", MAX_NEW_TOKENS)
    text = TextStream(model.detokenize, settings.pop("stop", ()))
    cancel = settings.pop("cancel", None)
    pick = sampler(**settings)

    def prompt_of(chat: Sequence[Message]) -> list[int]:
        return model.tokenize(model.render(chat, tools=tools))

    messages, prompt = fitted(messages, prompt_of, n_ctx=model.n_ctx, n_new=n_new, overflow=overflow)
    run = Run(prompt, limit=model.limit(prompt, n_new), pick=pick, ends=model.eos_ids, cancel=cancel)
    return AnswerStream(model.answer_tokens(run, at_once=at_once), run, text, tools=tools, started_s=started_s)
