"""Answers that follow a JSON Schema, a grammar, a regular expression or a list of texts, through llguidance.

llguidance says which tokens may come next; the others are masked before one is picked. Tokens that only one way
leads through (`{"name":`) are not computed at all. Shapes: V entries of the vocabulary.
"""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import llguidance
import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from edgeft.errors import ModelError, RuntimeFault, UsageError
from edgeft.runtime.sampling import Pick

if TYPE_CHECKING:
    from edgeft.runtime.base import TextModel

JSON_OPTIONS: Any = {"whitespace_flexible": True, "whitespace_pattern": "[ ]?"}
"""Between two parts of JSON a space or none, as the model learned it; more would let a poor model write only spaces."""
N_COMPILED = 32
"""Grammars kept compiled."""


class Constrainer:
    """Makes constraints for the answers of one model; from any thread."""

    def __init__(self, model: "TextModel") -> None:
        """Raises ModelError when no token ends an answer."""
        if not model.eos_ids:
            raise ModelError(f"{model.path}: no token ends an answer; name it in the model's tokenizer")
        spelled = _Vocabulary(model)
        self._vocabulary = LLTokenizer(TokenizerWrapper(spelled), eos_token=sorted(model.eos_ids))
        spelled.greedy = self._vocabulary.greedy_tokenize
        self._compiled: dict[str, LLMatcher] = {}
        self._in_use = threading.Lock()

    def constraint(self, kind: str, given: Any) -> "Constraint":
        """A constraint of `kind` (`schema`, `grammar`, `regex`, `choices`). Raises UsageError for one that is wrong."""
        try:
            grammar = _grammar(kind, given)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{kind}: {error}") from None
        with self._in_use:
            matcher = self._compiled.get(grammar)
            if matcher is None:
                matcher = LLMatcher(self._vocabulary, grammar, log_level=0)
                if matcher.is_error():
                    raise UsageError(f"{kind}: {matcher.get_error().strip()}")
                if len(self._compiled) == N_COMPILED:
                    del self._compiled[next(iter(self._compiled))]
                self._compiled[grammar] = matcher
            return Constraint(matcher.deep_copy(), self._vocabulary.vocab_size)


class Constraint:
    """What one answer may still become."""

    def __init__(self, matcher: LLMatcher, n_vocab: int) -> None:
        self._matcher = matcher
        self._n_vocab = n_vocab
        self._mask = np.zeros((n_vocab + 31) // 32, np.int32)

    @property
    def fulfilled(self) -> bool:
        """Whether the answer is whole and nothing may follow."""
        return bool(self._matcher.is_stopped())

    def pick(self, pick: Pick, logits: np.ndarray, ids: Sequence[int], *, greedy: bool) -> int:
        """The token that `pick` takes of those allowed."""
        if greedy:  # what is best of all is best of those allowed, if it is: no mask is needed
            token = pick(logits, ids)
            if self._matcher.validate_tokens([token]) == 1:
                return token
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._check()
        allowed = np.unpackbits(self._mask.view(np.uint8), bitorder="little")[: len(logits)].astype(bool)
        return pick(np.where(allowed, logits, -np.inf), ids)

    def take(self, token: int) -> list[int]:
        """Go on behind `token`; the tokens that must follow it."""
        self._matcher.consume_token(token)
        self._check()
        return self.forced()

    def forced(self) -> list[int]:
        """The tokens that must come next, taken as if they had come."""
        tokens: list[int] = self._matcher.compute_ff_tokens()
        if tokens:
            self._matcher.consume_tokens(tokens)
            self._check()
        return tokens

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RuntimeFault(f"the constraint cannot be followed any further: {self._matcher.get_error().strip()}")


class _Vocabulary:
    """A model's vocabulary by the names that `TokenizerWrapper` reads."""

    def __init__(self, model: "TextModel") -> None:
        spelled = model.token_bytes()
        # Models may have more rows than tokens; an id llguidance does not know would end the constraint.
        self.tokens = spelled + [b""] * (model.n_vocab - len(spelled))
        self.special_token_ids = sorted(model.special_ids())
        self.eos_token_id = min(model.eos_ids)
        self.bos_token_id = None
        self.greedy: Callable[[str], list[int]] = lambda text: []
        """llguidance's own way to spell a text, set once it has the vocabulary."""
        self._tokenize = model.tokenize

    def __call__(self, text: bytes) -> list[int]:
        """Tokens of exactly these bytes; sentencepiece puts a space before a text."""
        try:
            ids = self._tokenize(text.decode())
        except RuntimeFault:  # a character that the vocabulary has no way to write
            return []
        return ids if b"".join(self.tokens[token] for token in ids) == text else self.greedy(text.decode())


def _grammar(kind: str, given: Any) -> str:
    """llguidance's own form of a constraint. Raises TypeError or ValueError."""
    if kind == "schema":
        if not isinstance(given, Mapping):
            raise TypeError("must be a JSON Schema: an object")
        return LLMatcher.grammar_from_json_schema(json.dumps(given), defaults=JSON_OPTIONS)
    if kind == "regex":
        return LLMatcher.grammar_from_regex(given)
    if kind == "grammar":
        return llguidance.grammar_from("grammar", given)
    if isinstance(given, str) or not given or not all(isinstance(each, str) and each for each in given):
        raise ValueError("must be one or more texts, none of them empty")
    return llguidance.grammar_from("choice", json.dumps(list(given), ensure_ascii=False))
