"""Answering messages: from the template to the prompt, and from tokens to text and tool calls."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from edgeft.errors import ModelError, RuntimeFault, UsageError
from edgeft.runtime.defaults import CONSTRAINTS
from edgeft.runtime.history import Overflow, fitted, n_leading_system, with_system
from edgeft.runtime.model import Answer, Message, ToolCall
from edgeft.runtime.prefix_cache import common_length
from edgeft.runtime.run import Run
from edgeft.runtime.text import TextStream

if TYPE_CHECKING:
    from edgeft.runtime.base import TextModel

MAX_NEW_TOKENS = 128
MIN_PREFIX = 64
"""Tokens from which on a common beginning of prompts is worth being run by itself and kept."""

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
        calls = _calls(self._text.text, self._tools) if self._tools else ()
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


def _calls(text: str, tools: Tools) -> tuple[ToolCall, ...]:
    from edgeft.runtime.tool_calls import parse_calls  # who offers no tools starts sooner

    return parse_calls(text, tools)


def open_answer(
    model: "TextModel",
    messages: Sequence[Message],
    options: Mapping[str, Any],
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
    constraint = _constraint(model, settings)

    def prompt_of(chat: Sequence[Message]) -> list[int]:
        return model.tokenize(model.render(chat, tools=tools))

    messages = with_system(messages, model.defaults.system)
    model.check_chat(messages, tools)
    messages, prompt = fitted(messages, prompt_of, n_ctx=model.n_ctx, n_new=n_new, overflow=overflow)
    run = Run(
        prompt,
        limit=model.limit(prompt, n_new),
        ends=model.eos_ids,
        cancel=cancel,
        n_prefix=_n_prefix(messages, prompt, prompt_of),
        constraint=constraint,
        **settings,
    )
    return AnswerStream(model.answer_tokens(run, at_once=at_once), run, text, tools=tools, started_s=started_s)


def open_prompt(model: "TextModel", text: str, *, system: str | None) -> tuple[str, list[int], int]:
    """The prompt of a user's `text` behind a system message: its text, its tokens, and how many are its prefix."""
    user = {"role": "user", "content": text}
    messages = with_system([user], model.defaults.system if system is None else system)
    model.check_chat(messages, None)
    prompt = model.render(messages)
    ids = model.tokenize(prompt)
    return prompt, ids, _n_prefix(messages, ids, lambda chat: model.tokenize(model.render(chat)))


def _n_prefix(
    messages: Sequence[Message], prompt: list[int], prompt_of: Callable[[Sequence[Message]], list[int]]
) -> int:
    """Tokens that this prompt has in common with those to other messages behind the same system message and tools.

    Seen by asking something else. 0 for a prefix not worth keeping.
    """
    n_system = n_leading_system(messages)
    if len(prompt) <= MIN_PREFIX or n_system == len(messages):
        return 0
    asked = str(messages[n_system].get("content"))
    try:
        other = prompt_of([*messages[:n_system], {"role": "user", "content": "1" if asked.startswith("0") else "0"}])
    except (ModelError, RuntimeFault):  # a template that wants more, a vocabulary without digits
        return 0
    n_common = common_length(prompt[:-1], other)
    return n_common if n_common >= MIN_PREFIX else 0


def _constraint(model: "TextModel", settings: dict[str, Any]) -> Any:
    """The constraint that `settings` ask for, taken out of them."""
    given = {kind: settings.pop(kind) for kind in CONSTRAINTS if kind in settings}
    asked = {kind: value for kind, value in given.items() if value is not None}
    if len(asked) > 1:
        raise UsageError(f"{' and '.join(asked)}: an answer follows one of them; choose one")
    return next((model.constraint(kind, given) for kind, given in asked.items()), None)
