"""onnxruntime behind the `Model` interface, on a folder with an ONNX decoder and its tokenizer.

Only numpy, onnxruntime, tokenizers and Jinja are needed. Shapes: T tokens of a sequence, V entries of the vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from edgeft.errors import ModelError, RuntimeFault
from edgeft.runtime.model import Message, Sampling
from edgeft.runtime.onnx_decoder import open_decoder
from edgeft.runtime.onnx_session import find_file, open_session
from edgeft.runtime.onnx_vocabulary import OnnxVocabulary
from edgeft.runtime.sampling import sampler

N_BATCH = 512
"""Tokens of a prompt run at once."""
SCORE_FLOATS = 1 << 24
"""Logits made at once by a graph that gives those of every token: 64 MiB."""


@dataclass(frozen=True)
class State:
    """What is held of a sequence after its first `n_past` tokens."""

    n_past: int
    held: list[np.ndarray]
    """Keys and values (1, heads, n_past, width), in the order of the graph's inputs."""


class OnnxModel(OnnxVocabulary):
    """An ONNX decoder with its context. See `edgeft.runtime.Model`."""

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int,
        n_threads: int | None = None,
        providers: Sequence[str] = (),
        arena: bool = True,
        spinning: bool = True,
    ) -> None:
        """Open the file `path`, or the one of the folder `path`; the options are those of `open_session`.

        Raises ModelError for what is missing, damaged or not to be trusted, RuntimeFault when onnxruntime refuses
        it or has none of the `providers`, UsageError for a provider that does not exist.
        """
        self.path, folder = find_file(path)
        super().__init__(folder)
        self._session, checked = open_session(
            self.path, n_threads=n_threads, providers=providers, arena=arena, spinning=spinning
        )
        self.providers: list[str] = self._session.get_providers()
        self.n_threads: int = self._session.get_session_options().intra_op_num_threads
        trained = self.genai.get("model", {}).get("context_length") or self.config.get("max_position_embeddings")
        self.n_ctx = min(n_ctx, trained or n_ctx)
        self._decoder = open_decoder(self._session, checked, self.cache_sizes(), self.n_ctx)
        self.n_vocab: int = self._decoder.n_vocab or self.config.get("vocab_size", 0)
        if not self.n_vocab:
            raise ModelError(f"{self.path}: neither the graph nor config.json says how many tokens there are")
        self.metadata |= {f"onnx.{key}": value for key, value in checked.metadata.items()}
        self.metadata["onnx.ir_version"] = str(checked.ir_version)
        self._n_past = 0
        self._turn = 0

    def stream(
        self,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int,
        stop: Sequence[int] = (),
        ignore_eos: bool = False,
        **sampling: Unpack[Sampling],
    ) -> Iterator[int]:
        """See `Model.stream`."""
        self._check_ids(prompt_ids)
        ends = frozenset(stop) if ignore_eos else self.eos_ids.union(stop)
        # The last token of a full context is not run, so it may stand one behind the end.
        limit = min(max_new_tokens, self.n_ctx - len(prompt_ids) + 1)
        return self._answer(list(prompt_ids), limit, sampler(**sampling), ends)

    def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int,
        stop: Sequence[int] = (),
        **sampling: Unpack[Sampling],
    ) -> list[int]:
        """See `Model.generate`."""
        return list(self.stream(prompt_ids, max_new_tokens=max_new_tokens, stop=stop, **sampling))

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        max_new_tokens: int = 128,
        stop: Sequence[int] = (),
        **sampling: Unpack[Sampling],
    ) -> str:
        """See `Model.chat`."""
        prompt = self.tokenize(self.render(messages, tools=tools))
        return self.detokenize(self.generate(prompt, max_new_tokens=max_new_tokens, stop=stop, **sampling))

    def score(self, ids: Sequence[int]) -> np.ndarray:
        """See `Model.score`. A graph that gives only the last token's logits is run a token at a time."""
        self._check_ids(ids)
        self._reset()
        piece = self._piece() if self._decoder.all_rows else 1
        pieces = [ids[at : at + piece] for at in range(0, len(ids), piece)]
        return np.concatenate([self._decode(tokens, len(tokens)).copy() for tokens in pieces])

    def save_state(self) -> State:
        """A copy of the sequence run so far, for `load_state` of this model or of another on the same file."""
        self._check_open()
        return State(self._n_past, self._decoder.save(self._n_past))

    def load_state(self, state: State) -> None:
        """Go on behind the tokens of `state`; ends the streams begun before."""
        self._check_open()
        self._reset()
        self._decoder.restore(state.held)
        self._n_past = state.n_past

    def close(self) -> None:
        """See `Model.close`; closing twice does no harm."""
        if not self._closed:
            del self._decoder, self._session
        super().close()

    def _answer(
        self, prompt: list[int], limit: int, pick: Callable[[np.ndarray], int], ends: frozenset[int]
    ) -> Iterator[int]:
        self._reset()
        turn = self._turn
        ids = prompt
        for _ in range(limit):
            if self._turn != turn:
                raise RuntimeFault("this stream was ended by a later call on the same model; finish it first")
            token = pick(self._prefill(ids)[-1])
            if token in ends:
                return
            yield token
            ids = [token]

    def _prefill(self, ids: list[int]) -> np.ndarray:
        """Run `ids`; the logits (1, V) after the last of them, good until the next call."""
        piece = N_BATCH if self._decoder.lean else self._piece()
        last = (len(ids) - 1) // piece * piece
        for at in range(0, last, piece):
            self._decode(ids[at : at + piece], 0)
        return self._decode(ids[last:], 1)

    def _piece(self) -> int:
        """Tokens a graph may be given at once when it makes the logits of all of them."""
        return max(1, min(N_BATCH, SCORE_FLOATS // self.n_vocab))

    def _reset(self) -> None:
        self._n_past = 0
        self._turn += 1

    def _decode(self, ids: Sequence[int], n_logits: int) -> np.ndarray:
        """Run tokens behind those already run; logits (n_logits, V) of the last of them, good until the next call."""
        self._check_open()
        if self._n_past + len(ids) > self.n_ctx:
            raise RuntimeFault(f"{self.path}: onnxruntime did not run {len(ids)} tokens: the context is full")
        logits = self._decoder.run(ids, self._n_past, n_logits)
        self._n_past += len(ids)
        return logits

    def _check_ids(self, ids: Sequence[int]) -> None:
        self._check_open()
        if not len(ids):
            raise RuntimeFault("there are no tokens to run; the prompt is empty")
        if len(ids) > self.n_ctx:
            raise RuntimeFault(f"{len(ids)} tokens do not fit the context of {self.n_ctx}; shorten them")
        if min(ids) < 0 or max(ids) >= self.n_vocab:
            raise RuntimeFault(f"a token id is outside the vocabulary of {self.n_vocab}")
