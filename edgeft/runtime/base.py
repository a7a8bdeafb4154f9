"""What every runtime of a decoder shares: turns between threads, answers token by token, scores.

A backend gives the primitives at the end of `TextModel`: a vocabulary, and one sequence that tokens are run behind,
cut back, saved and restored. Shapes: T tokens of a sequence, V entries of the vocabulary.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, Unpack

import numpy as np

from edgeft.errors import ContextOverflow, RuntimeFault
from edgeft.runtime.asynchronous import AsyncCalls
from edgeft.runtime.chat import open_answer, open_prompt
from edgeft.runtime.defaults import Defaults
from edgeft.runtime.freed_memory import give_back
from edgeft.runtime.history import Overflow
from edgeft.runtime.model import Classification, Message, Options, Sampling
from edgeft.runtime.optional import open_module
from edgeft.runtime.prefix_cache import PrefixCache, hash_files
from edgeft.runtime.run import Run
from edgeft.runtime.turns import Turns

TURN_TOKENS = 16
"""Tokens after which an answer lets others have a turn; changing turns copies keys and values of two sequences."""
SCORE_FLOATS = 1 << 24
"""Logits a backend holds at once while scoring: 64 MiB."""


class TextModel(AsyncCalls, ABC):
    """See `edgeft.runtime.Model`. A subclass sets the attributes and calls `__init__` before it is used."""

    path: Path
    n_vocab: int
    n_ctx: int
    n_threads: int
    eos_ids: frozenset[int]
    metadata: dict[str, str]
    _n_batch: int
    """Most tokens of one `_decode`."""

    def __init__(self) -> None:
        self._turns = Turns()
        self._running: Run | None = None
        """Whose tokens the context holds."""
        self._open = True
        self._prefixes = PrefixCache()
        self._files_hash: bytes | None = None
        self._constrainer: Any = None
        self._making = threading.Lock()
        self.defaults = Defaults()

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
        """See `Model.stream`."""
        ends = frozenset(stop) if ignore_eos else self.eos_ids.union(stop)
        limit = self.limit(prompt_ids, max_new_tokens)
        run = Run(prompt_ids, limit=limit, ends=ends, cancel=cancel, **sampling)
        return self.answer_tokens(run, at_once=False)

    def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int,
        stop: Sequence[int] = (),
        cancel: threading.Event | None = None,
        **sampling: Unpack[Sampling],
    ) -> list[int]:
        """See `Model.generate`."""
        limit = self.limit(prompt_ids, max_new_tokens)
        run = Run(prompt_ids, limit=limit, ends=self.eos_ids.union(stop), cancel=cancel, **sampling)
        return list(self.answer_tokens(run, at_once=True))

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        stream: bool = False,
        overflow: Overflow = "error",
        **options: Unpack[Options],
    ) -> Any:
        """See `Model.chat`."""
        settings = self.defaults.merged(options)
        answer = open_answer(self, messages, settings, tools=tools, overflow=overflow, at_once=not stream)
        if stream:
            return answer
        with answer:
            for _ in answer:
                pass
        return answer.answer

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
        """See `Model.classify`."""
        from edgeft.runtime.labels import classification, label_ids, label_scores  # who only chats starts sooner

        labels = self.defaults.labels if labels is None else labels
        prompt, prompt_ids, n_prefix = open_prompt(self, text, system=system)
        found = label_ids(self, prompt, prompt_ids, labels)
        run = Run(prompt_ids, limit=1, ends=self.eos_ids, n_prefix=n_prefix)
        with self._turns:
            scores = label_scores(self, run, found)
        return classification(
            labels,
            scores,
            [len(ids) + bool(self.eos_ids) for ids in found],
            normalize=normalize,
            temperature=self.defaults.temperature if temperature is None else temperature,
            threshold=self.defaults.threshold if threshold is None else threshold,
        )

    def embed(self, texts: Sequence[str], *, normalize: bool = True) -> np.ndarray:
        """See `Model.embed`."""
        raise RuntimeFault(f"{self.path}: this model writes text and has no vectors; embed with an encoder")

    def score(self, ids: Sequence[int]) -> np.ndarray:
        """See `Model.score`."""
        self._check_length(ids)
        with self._turns:
            self._reset()
            return self.logits_behind(ids)

    def keep_prefixes(self, folder: Path) -> None:
        """Keep evaluated system prompts in `folder`, for this process and later ones."""
        self._prefixes.keep_in(folder, self._state_hash)

    def close(self) -> None:
        """See `Model.close`; closing twice does no harm."""
        with self._turns:
            if self._open:
                self._open = False
                self._running = None
                self._prefixes.clear()
                self._free()
                give_back()

    def constraint(self, kind: str, given: Any) -> Any:
        """A constraint on one answer; see `Options`. Raises UsageError, MissingExtra."""
        with self._making:
            if self._constrainer is None:
                self._constrainer = open_module("constraints", "constrain").Constrainer(self)
        return self._constrainer.constraint(kind, given)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def limit(self, prompt_ids: Sequence[int], max_new_tokens: int) -> int:
        """Tokens the answer to a prompt may have; the last of a full context is not run: it may stand one behind.

        Raises RuntimeFault for an empty prompt, ContextOverflow for one that does not fit.
        """
        self._check_length(prompt_ids)
        return max(0, min(max_new_tokens, self.n_ctx - len(prompt_ids) + 1))

    def answer_tokens(self, run: Run, *, at_once: bool) -> Iterator[int]:
        """The tokens of `run`. With `at_once` the turn is kept between them, for up to TURN_TOKENS: only for callers
        that ask for the next token without delay."""
        try:
            while run.reason is None:
                if at_once:
                    with self._turns:
                        for _ in range(TURN_TOKENS):
                            token = self._next(run)
                            if token is None:
                                return
                            yield token
                else:
                    with self._turns:
                        token = self._next(run)
                    if token is None:
                        return
                    yield token
        finally:
            run.reason, run.state = run.reason or "cancelled", None

    def _next(self, run: Run) -> int | None:
        """One more token of `run`, None at its end; in one's turn."""
        if not run.goes_on():
            return None
        if run.forced:
            return run.take_forced()
        self._resume(run)
        logits = self._prefill(run)
        return None if logits is None else run.take(logits)

    def _resume(self, run: Run) -> None:
        """Make the context hold the sequence of `run`."""
        if self._running is run:  # which it is not of a model that was closed
            return
        self._reset()
        self._running = run
        if run.state is not None:
            self._restore(run.state)
            run.state = None
        elif run.n_prefix:
            self._take_prefix(run)

    def _take_prefix(self, run: Run) -> None:
        """Begin with the kept state of the run's prefix, if there is one."""
        prefix = run.ids[: run.n_prefix]
        state = self._prefixes.get(prefix)
        if state is None:
            return
        try:
            self._restore(state)
        except RuntimeFault:
            self._prefixes.forget(prefix)
            self._keep(0)
        else:
            run.n_run = run.n_prefix

    def _prefill(self, run: Run) -> np.ndarray | None:
        """Run what the context has not seen; logits (V,) behind the last token, None when cancelled meanwhile.

        A prefix is run by itself whether it is kept or not, so that the answer is the same, rounding included.
        """
        if run.n_prefix <= run.n_run == len(run.ids) - 1:
            logits = self._decode_one(run.ids[-1])
            run.n_run += 1
            return logits
        while True:
            end = run.n_prefix if run.n_run < run.n_prefix else len(run.ids)
            piece = run.ids[run.n_run : min(end, run.n_run + self._n_batch)]
            is_last = run.n_run + len(piece) == len(run.ids)
            logits = self._decode(piece, int(is_last))
            run.n_run += len(piece)
            if is_last:
                return logits[-1]
            if run.n_run == run.n_prefix:
                self._prefixes.put(run.ids[: run.n_prefix], self._state())
            if not run.goes_on():
                return None

    def _reset(self) -> None:
        """Empty the context, in one's turn; what it held of a run that goes on is put aside."""
        self._check_open()
        last, self._running = self._running, None
        if last is not None and last.reason is None:
            last.state = self._state()
        self._keep(0)

    def prompt_logits(self, run: Run) -> np.ndarray:
        """Logits (V,) behind the prompt of a `run` whose tokens nobody asks for; in one's turn."""
        self._resume(run)
        try:
            logits = self._prefill(run)
        finally:
            run.reason = "length"  # nobody goes on with it
        assert logits is not None  # nobody cancels it
        return logits

    def logits_behind(self, ids: Sequence[int]) -> np.ndarray:
        """Run `ids` behind the sequence as it is; a copy of the logits (T, V) behind each; in one's turn."""
        piece = max(1, min(self._n_batch, SCORE_FLOATS // self.n_vocab))
        pieces = [ids[at : at + piece] for at in range(0, len(ids), piece)]
        rows = [self._decode(tokens, len(tokens)).copy() for tokens in pieces]
        return np.concatenate(rows) if rows else np.empty((0, self.n_vocab), np.float32)

    def keep(self, n: int) -> None:
        """Forget all but the first `n` tokens of the sequence; in one's turn."""
        self._keep(n)

    def _state_hash(self) -> bytes:
        """Stands for all that a saved state depends on: this model, its external data and the backend."""
        files = [self.path, *sorted(self.path.parent.glob(f"{self.path.name}[._]*"))]
        if self._files_hash is None:
            self._files_hash = hash_files([each for each in files if each.is_file()])
        return self._files_hash + self._identity().encode()

    def _check_length(self, ids: Sequence[int]) -> None:
        self._check_open()
        if not len(ids):
            raise RuntimeFault("there are no tokens to run; the prompt is empty")
        if len(ids) > self.n_ctx:
            raise ContextOverflow(f"{len(ids)} tokens do not fit the context of {self.n_ctx}; shorten them")

    def _check_open(self) -> None:
        if not self._open:
            raise RuntimeFault(f"{self.path}: this model was closed")

    @abstractmethod
    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """See `Model.render`."""

    @abstractmethod
    def check_chat(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> None:
        """Raises ModelError when the template would leave out a part of `messages` or `tools`."""

    @abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """See `Model.tokenize`; from any thread."""

    @abstractmethod
    def detokenize(self, ids: Sequence[int]) -> str:
        """See `Model.detokenize`; from any thread."""

    @abstractmethod
    def token_bytes(self) -> list[bytes]:
        """The bytes each entry of the vocabulary stands for in a text; of special tokens their spelling."""

    @abstractmethod
    def special_ids(self) -> frozenset[int]:
        """Tokens that no ordinary text contains."""

    def _decode_one(self, token: int) -> np.ndarray:
        """`_decode` of one token, with its logits (V,): what is done for every token of an answer."""
        logits: np.ndarray = self._decode([token], 1)[-1]
        return logits

    @abstractmethod
    def _decode(self, ids: Sequence[int], n_logits: int) -> np.ndarray:
        """Run 1 to `_n_batch` tokens behind those already run.

        Logits (n_logits, V), float32, of the last of them: memory of the backend, good until the next call. Raises
        RuntimeFault when the backend fails, or an id is outside the vocabulary.
        """

    @abstractmethod
    def _keep(self, n: int) -> None:
        """Forget all but the first `n` tokens of the sequence; 0: all. Raises RuntimeFault where it cannot."""

    @abstractmethod
    def _state(self) -> bytes:
        """The sequence as the backend holds it: keys, values and how many tokens."""

    @abstractmethod
    def _restore(self, state: bytes) -> None:
        """Make the emptied sequence what it was at `_state`. Raises RuntimeFault for bytes that are no such state."""

    @abstractmethod
    def _identity(self) -> str:
        """What a state depends on besides the model file's bytes: the backend, its version, types of the cache."""

    @abstractmethod
    def _free(self) -> None:
        """Release the memory; called once, in one's turn."""
