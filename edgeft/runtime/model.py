"""The one interface of every runtime, and what its calls take and give.

Shapes: T tokens of a sequence, V entries of the vocabulary, N texts, D width of an embedding.
"""

import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self, TypedDict, Unpack, overload

if TYPE_CHECKING:
    import numpy as np

    from edgeft.runtime.chat import AnswerStream
    from edgeft.runtime.history import Overflow

Message = Mapping[str, Any]
"""One chat message: `role`, `content` and whatever else the model's template reads."""


class Sampling(TypedDict, total=False):
    """How the next token is chosen, in llama.cpp's names; by default the most likely one is taken."""

    temperature: float
    """0 (the default): always the most likely token."""
    top_k: int
    """Draw among this many most likely tokens; 0 (the default): all."""
    top_p: float
    """Draw among the most likely tokens that together reach this probability; 1 (the default): all."""
    min_p: float
    """Draw among tokens at least this share of the most likely one's probability; 0 (the default): all."""
    repeat_penalty: float
    """Divide the positive logits of recent tokens by this, and multiply the others; 1 (the default): leave them."""
    repeat_last_n: int
    """How many tokens, prompt and answer, are recent; 64 by default."""
    seed: int
    """The same seed (default 0) gives the same answer."""


class Options(Sampling, total=False):
    """What an answer in text may be and when it ends. At most one of `schema`, `grammar`, `regex` and `choices`
    is given; they need the extra `constrain`, and hold only when the answer is not cut (`finish_reason`)."""

    max_new_tokens: int
    """Longest answer (default 128)."""
    stop: Sequence[str]
    """Texts that end the answer; they are not part of it."""
    schema: Mapping[str, Any]
    """JSON Schema: the answer is JSON, on one line, that is valid under it."""
    grammar: str
    """The answer follows this grammar, in llguidance's Lark or llama.cpp's GBNF."""
    regex: str
    """The whole answer matches this regular expression, in the syntax of Rust's `regex`."""
    choices: Sequence[str]
    """The answer is one of these texts."""
    cancel: threading.Event
    """Once it is set, from any thread, the answer ends before its next token."""


class ToolCall(NamedTuple):
    """A call that the model asks for."""

    name: str
    arguments: Mapping[str, Any]


class Answer(NamedTuple):
    """What came back; `str(answer)` is its text.

    `finish_reason`: `stop` (an end token, a stop text, or a constraint that is fulfilled), `length` (max_new_tokens
    or the context is used up), `tool_calls` (as `stop`, and the answer calls tools) or `cancelled`. Token counts are
    without the end token; `ttft_ms` is the time from the call to the first token, 0 when there is none.
    """

    text: str
    finish_reason: Literal["stop", "length", "tool_calls", "cancelled"]
    n_prompt: int
    n_new: int
    tool_calls: tuple[ToolCall, ...]
    ttft_ms: float

    def __str__(self) -> str:
        return self.text


class Classification(NamedTuple):
    """`probabilities` of the labels, most likely first, sum to 1; `label` is None when the first is below the
    threshold."""

    label: str | None
    probabilities: Mapping[str, float]


class Model(Protocol):
    """A model ready to run. Token ids are those of the file's own vocabulary.

    Many threads may share one: calls wait for each other, and streams take turns, token by token, each going on
    where it was, with the answer it gives alone. Every call that computes raises RuntimeFault when the model was
    closed or the runtime fails, and ContextOverflow when a prompt does not fit.
    """

    n_vocab: int
    n_ctx: int
    """Longest sequence, prompt and answer together, in tokens."""
    n_threads: int
    """CPU threads in use."""
    eos_ids: frozenset[int]
    """Tokens that end an answer."""
    metadata: dict[str, str]
    """What the file says about itself."""

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The text of a chat, by the template in the file. Raises ModelError where that fails."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """Ids of `text`. Special tokens in it are parsed. No BOS is added: that is the template's."""
        ...

    def detokenize(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens. Bytes that are not UTF-8 become U+FFFD."""
        ...

    def stream(
        self,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int,
        stop: Sequence[int] = (),
        ignore_eos: bool = False,
        cancel: threading.Event | None = None,
        **sampling: Unpack[Sampling],
    ) -> Iterator[int]:
        """Yield the tokens of an answer as they are made, up to the end token (left out) or the full context.

        `stop` names further tokens that end the answer; with `ignore_eos` only those do, for measuring speed.
        Setting `cancel`, or closing the iterator, ends it before the next token. Nothing of an earlier call is
        reused: the whole prompt is computed when the first token is asked for. Raises RuntimeFault for an empty
        prompt, UsageError for sampling values that make no sense.
        """
        ...

    def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int,
        stop: Sequence[int] = (),
        cancel: threading.Event | None = None,
        **sampling: Unpack[Sampling],
    ) -> list[int]:
        """All tokens of `stream`."""
        ...

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        stream: Literal[False] = False,
        overflow: "Overflow" = "error",
        **options: Unpack[Options],
    ) -> Answer: ...

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        stream: Literal[True],
        overflow: "Overflow" = "error",
        **options: Unpack[Options],
    ) -> "AnswerStream": ...

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        stream: bool = False,
        overflow: "Overflow" = "error",
        **options: Unpack[Options],
    ) -> "Answer | AnswerStream":
        """The assistant's answer to `messages`; with `stream` an iterator of its text as it is made.

        `tools` go into the prompt by the template, and what the answer calls is in `Answer.tool_calls`. `overflow`
        says what happens when prompt and `max_new_tokens` do not fit the context: `error` lets the answer be cut,
        or raises ContextOverflow where not even the prompt fits; `truncate_left` leaves out the oldest turns,
        `truncate_middle` those behind the first, until all fits, never the system message or the last turn. Raises
        UsageError for options that make no sense, MissingExtra where a constraint needs a package, ModelError where the
        template would leave out a part of the messages or tools.
        """
        ...

    def classify(
        self,
        text: str,
        labels: Sequence[str] | None = None,
        *,
        system: str | None = None,
        normalize: Literal["sum", "mean"] = "sum",
        temperature: float | None = None,
        threshold: float | None = None,
    ) -> Classification:
        """How likely the answer to the user's `text` is each of `labels` (None: those of the bundle).

        A label's score is the log-probability of its tokens and the end token, summed, or with `mean` divided by
        their number, which a model that was not trained on these labels needs. The softmax of score / `temperature`
        gives the probabilities; below `threshold` no label is chosen. Both are measured on held-out data: None means
        those of the bundle, else 1 and 0. Raises UsageError for labels that cannot be told apart.
        """
        ...

    def embed(self, texts: Sequence[str], *, normalize: bool = True) -> "np.ndarray":
        """Vectors (N, D), float32, of an encoder, pooled as its file says; of length 1 with `normalize`."""
        ...

    def score(self, ids: Sequence[int]) -> "np.ndarray":
        """Teacher-forced logits (T, V), float32: row t is about the token after `ids[t]`."""
        ...

    async def agenerate(self, prompt_ids: Sequence[int], **options: Any) -> list[int]:
        """`generate` in a thread; cancelling the task ends it within a token. So it does `achat` and `astream`."""
        ...

    async def achat(self, messages: Sequence[Message], **options: Any) -> Answer:
        """`chat` in a thread."""
        ...

    def astream(self, messages: Sequence[Message], **options: Any) -> AsyncIterator[str]:
        """The text of `chat(stream=True)`, piece by piece, made in a thread."""
        ...

    async def aclassify(self, text: str, labels: Sequence[str] | None = None, **options: Any) -> Classification:
        """`classify` in a thread, which works to its end."""
        ...

    async def aembed(self, texts: Sequence[str], **options: Any) -> "np.ndarray":
        """`embed` in a thread, which works to its end."""
        ...

    def close(self) -> None:
        """Free the memory. The model cannot be used afterwards."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
