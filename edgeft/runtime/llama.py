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
        self._batch = _Batch(self._n_batch)
        self._logits, self._logits_at = np.empty((0, self.n_vocab), np.float32), 0
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
        return np.concatenate([self._decode(tokens, len(tokens)).copy() for tokens in pieces])

    def close(self) -> None:
        """See `Model.close`; closing twice does no harm."""
        if self._model is not None:
            self._batch.free()
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
        """Run `ids`; a view of the logits (1, V) after the last of them, as `_decode` gives it."""
        last = (len(ids) - 1) // self._n_batch * self._n_batch
        for at in range(0, last, self._n_batch):
            self._decode(ids[at : at + self._n_batch], 0)
        return self._decode(ids[last:], 1)

    def _reset(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)  # masked cells are not read
        self._n_past = 0
        self._turn += 1

    def _decode(self, ids: Sequence[int], n_logits: int) -> np.ndarray:
        """Run at most n_batch tokens behind those already run.

        Returns the logits (n_logits, V) of the last of them: llama.cpp's own memory, good until the next call.
        """
        status = llama_cpp.llama_decode(self._context, self._batch.filled(ids, self._n_past, n_logits))
        if status != 0:
            why = FAILURES.get(status, f"internal failure {status}")
            raise RuntimeFault(f"{self.path}: llama.cpp did not run {len(ids)} tokens: {why}")
        self._n_past += len(ids)
        return self._outputs(n_logits)

    def _outputs(self, n_rows: int) -> np.ndarray:
        """The first rows (n_rows, V) of llama.cpp's logits.

        The array over them is kept while they stay where they are: making it takes longer than picking a token.
        """
        if n_rows:
            pointer = llama_cpp.llama_get_logits(self._context)
            address = ctypes.addressof(pointer.contents)
            if address != self._logits_at or n_rows > len(self._logits):
                self._logits, self._logits_at = np.ctypeslib.as_array(pointer, (n_rows, self.n_vocab)), address
        return self._logits[:n_rows]

    def _check_length(self, ids: Sequence[int]) -> None:
        self._check_open()
        if not len(ids):
            raise RuntimeFault("there are no tokens to run; the prompt is empty")
        if len(ids) > self.n_ctx:
            raise RuntimeFault(f"{len(ids)} tokens do not fit the context of {self.n_ctx}; shorten them")


class _Batch:
    """llama.cpp's batch of one sequence, its arrays (n_batch,) seen through numpy."""

    def __init__(self, n_batch: int) -> None:
        self._batch = batch = llama_cpp.llama_batch_init(n_batch, 0, 1)
        self._tokens = np.ctypeslib.as_array(batch.token, (n_batch,))
        self._positions = np.ctypeslib.as_array(batch.pos, (n_batch,))
        self._outputs = np.ctypeslib.as_array(batch.logits, (n_batch,))
        self._counting = np.arange(n_batch, dtype=np.int32)
        for i in range(n_batch):
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0

    def filled(self, ids: Sequence[int], start: int, n_outputs: int) -> Any:
        """The batch with `ids` at the positions from `start` on, logits wanted for the last `n_outputs`."""
        n = len(ids)
        self._batch.n_tokens = n
        self._tokens[:n] = ids
        self._positions[:n] = self._counting[:n] + start
        self._outputs[: n - n_outputs] = 0
        self._outputs[n - n_outputs : n] = 1
        return self._batch

    def free(self) -> None:
        """Give the memory back; the arrays are gone with it."""
        llama_cpp.llama_batch_free(self._batch)


def _usable_cpus() -> int:
    """CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
