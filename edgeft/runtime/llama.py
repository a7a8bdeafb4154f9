"""llama.cpp behind the `Model` interface, through llama-cpp-python's low-level bindings.

Shapes: T tokens of a sequence, V entries of the vocabulary.
"""

import ctypes
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import llama_cpp
import numpy as np

from edgeft.errors import RuntimeFault
from edgeft.runtime.llama_vocabulary import LlamaVocabulary, captured_log
from edgeft.runtime.model import Message, Sampling
from edgeft.runtime.sampling import sampler

N_BATCH = 512
SCORE_FLOATS = 1 << 24
"""Logits held at once by llama.cpp while scoring: 64 MiB."""

PARAMETERS_PER_THREAD = 20_000_000
"""Smallest share of a model worth a thread of its own: llama.cpp's threads wait for each other, spinning, after
every operation. A 7 M model in Q4_K_M decoded 2,500 tokens/s with one thread and 2,100 with two on free cores,
900 and 17 on busy ones."""

FAILURES = {1: "the context is full", 2: "it was interrupted", -1: "a token id is outside the vocabulary"}
"""What `llama_decode` means by its return values (llama.h); every other one is an internal failure."""


class LlamaModel(LlamaVocabulary):
    """A GGUF model with its context. See `edgeft.runtime.Model`."""

    def __init__(self, path: Path, *, n_ctx: int, n_threads: int | None, n_gpu_layers: int) -> None:
        """Raises RuntimeFault when llama.cpp refuses the file or cannot make a context."""
        super().__init__(path, vocab_only=False, n_gpu_layers=n_gpu_layers)
        self.n_ctx = min(n_ctx, llama_cpp.llama_model_n_ctx_train(self._model) or n_ctx)
        self._n_batch = min(N_BATCH, self.n_ctx)
        n_parameters = llama_cpp.llama_model_n_params(self._model)
        self.n_threads = n_threads or max(1, min(_usable_cpus(), n_parameters // PARAMETERS_PER_THREAD))
        self._context = self._new_context()
        self._batch = llama_cpp.llama_batch_init(self._n_batch, 0, 1)
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
        self._check_length(prompt_ids)
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
        """See `Model.score`."""
        self._check_length(ids)
        self._reset()
        piece = max(1, min(self._n_batch, SCORE_FLOATS // self.n_vocab))
        pieces = [ids[at : at + piece] for at in range(0, len(ids), piece)]
        return np.concatenate([self._decode(tokens, len(tokens)) for tokens in pieces])

    def close(self) -> None:
        """See `Model.close`; closing twice does no harm."""
        if self._model is not None:
            llama_cpp.llama_batch_free(self._batch)
            llama_cpp.llama_free(self._context)
        super().close()

    def _context_params(self) -> Any:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self.n_ctx
        params.n_batch = params.n_ubatch = self._n_batch
        params.n_threads = params.n_threads_batch = self.n_threads
        params.no_perf = True
        return params

    def _new_context(self) -> Any:
        with captured_log() as log:
            context = llama_cpp.llama_init_from_model(self._model, self._context_params())
        if not context:
            super().close()
            raise RuntimeFault(f"{self.path}: no context of {self.n_ctx} tokens: {log.reason}")
        return context

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
        """Run `ids`; logits (1, V) after the last of them."""
        logits = np.empty((0, self.n_vocab), np.float32)
        for at in range(0, len(ids), self._n_batch):
            piece = ids[at : at + self._n_batch]
            logits = self._decode(piece, 1 if at + len(piece) == len(ids) else 0)
        return logits

    def _reset(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self._n_past = 0
        self._turn += 1

    def _decode(self, ids: Sequence[int], n_logits: int) -> np.ndarray:
        """Run at most n_batch tokens behind those already run; logits (n_logits, V) of the last of them."""
        batch, n = self._batch, len(ids)
        batch.n_tokens = n
        for i, token in enumerate(ids):
            batch.token[i] = token
            batch.pos[i] = self._n_past + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i >= n - n_logits
        status = llama_cpp.llama_decode(self._context, batch)
        if status != 0:
            why = FAILURES.get(status, f"internal failure {status}")
            raise RuntimeFault(f"{self.path}: llama.cpp did not run {n} tokens: {why}")
        self._n_past += n
        if n_logits == 0:
            return np.empty((0, self.n_vocab), np.float32)
        pointer = ctypes.cast(llama_cpp.llama_get_logits(self._context), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, (n_logits, self.n_vocab)).copy()

    def _check_length(self, ids: Sequence[int]) -> None:
        self._check_open()
        if not len(ids):
            raise RuntimeFault("there are no tokens to run; the prompt is empty")
        if len(ids) > self.n_ctx:
            raise RuntimeFault(f"{len(ids)} tokens do not fit the context of {self.n_ctx}; shorten them")


def _usable_cpus() -> int:
    """CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
