"""llama.cpp behind the `Model` interface, through llama-cpp-python's low-level bindings.

Shapes: T tokens of a sequence, V entries of the vocabulary.
"""

import ctypes
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.errors import RuntimeFault
from edgeft.machine.cores import usable_cores
from edgeft.runtime.base import TextModel
from edgeft.runtime.gguf_format import Header
from edgeft.runtime.llama_library import build, llama_cpp
from edgeft.runtime.llama_vocabulary import LlamaVocabulary, captured_log
from edgeft.runtime.optional import open_module

N_BATCH = 512
SEQUENCE = 0
"""llama.cpp's number of the one sequence."""
COUNT = struct.Struct("<q")
"""In front of a saved state: how many tokens it is of."""

PARAMETERS_PER_THREAD = 20_000_000
"""Smallest share of a model worth a thread of its own: llama.cpp's threads wait for each other, spinning, after
every operation. A 7 M model in Q4_K_M decoded 2,500 tokens/s with one thread and 2,100 with two on free cores,
900 and 17 on busy ones."""

FAILURES = {1: "the context is full", 2: "it was interrupted", -1: "a token id is outside the vocabulary"}
"""What `llama_decode` means by its return values (llama.h); every other one is an internal failure."""


class LlamaModel(LlamaVocabulary, TextModel):
    """A GGUF model with its context. See `edgeft.runtime.Model`."""

    def __init__(
        self, path: Path, *, header: Header | None = None, n_ctx: int, n_threads: int | None, n_gpu_layers: int
    ) -> None:
        """`header`: the file's, where it was read before.

        Raises RuntimeFault when llama.cpp refuses the file or cannot make a context.
        """
        TextModel.__init__(self)
        LlamaVocabulary.__init__(self, path, header=header, vocab_only=False, n_gpu_layers=n_gpu_layers)
        self.n_ctx = min(n_ctx, llama_cpp.llama_model_n_ctx_train(self._model) or n_ctx)
        self._n_batch = min(N_BATCH, self.n_ctx)
        n_parameters = llama_cpp.llama_model_n_params(self._model)
        self.n_threads = n_threads or max(1, min(usable_cores(), n_parameters // PARAMETERS_PER_THREAD))
        self._context = self._new_context()
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = _Batch(self._n_batch)
        self._logits, self._logits_at = np.empty((0, self.n_vocab), np.float32), 0
        self._n_past = 0
        self._embedder: Any = None

    def embed(self, texts: Sequence[str], *, normalize: bool = True) -> np.ndarray:
        """See `Model.embed`. Special tokens are added as the file says."""
        ids = [self.tokenize(text, add_special=True) for text in texts]
        with self._turns:
            self._check_open()
            if self._embedder is None:
                embedding = open_module("llama_embed", "gguf")
                self._embedder = embedding.Embedder(self._model, self.path, self._context_params(), self.n_ctx)
            vectors: np.ndarray = self._embedder.vectors(ids, normalize=normalize)
            return vectors

    def close(self) -> None:
        """See `Model.close`; closing twice does no harm."""
        TextModel.close(self)

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
            LlamaVocabulary.close(self)
            raise RuntimeFault(f"{self.path}: no context of {self.n_ctx} tokens: {log.reason}")
        return context

    def _decode(self, ids: Sequence[int], n_logits: int) -> np.ndarray:
        """See `TextModel._decode`."""
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

    def _keep(self, n: int) -> None:
        """See `TextModel._keep`. Masked cells are not read, so they are not cleared."""
        if n == 0:
            llama_cpp.llama_memory_clear(self._memory, False)
        elif n < self._n_past and not llama_cpp.llama_memory_seq_rm(self._memory, SEQUENCE, n, -1):
            raise RuntimeFault(f"{self.path}: a model of this kind cannot go back to an earlier token")
        self._n_past = n

    def _state(self) -> bytes:
        """See `TextModel._state`: the number of tokens, then llama.cpp's own bytes."""
        size = llama_cpp.llama_state_seq_get_size(self._context, SEQUENCE)
        room = (ctypes.c_uint8 * size)()
        if llama_cpp.llama_state_seq_get_data(self._context, room, size, SEQUENCE) != size:
            raise RuntimeFault(f"{self.path}: llama.cpp did not hand out the state of {self._n_past} tokens")
        return b"".join((COUNT.pack(self._n_past), memoryview(room)))

    def _restore(self, state: bytes) -> None:
        """See `TextModel._restore`."""
        held = np.frombuffer(state, np.uint8, offset=COUNT.size) if len(state) > COUNT.size else np.empty(0, np.uint8)
        at = held.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        taken = llama_cpp.llama_state_seq_set_data(self._context, at, held.size, SEQUENCE)
        n_past = llama_cpp.llama_memory_seq_pos_max(self._memory, SEQUENCE) + 1
        if not taken or taken != held.size or COUNT.unpack_from(state)[0] != n_past:
            self._keep(0)
            raise RuntimeFault(f"{self.path}: these {len(state)} bytes are not the state of a sequence of this model")
        self._n_past = n_past

    def _identity(self) -> str:
        """See `TextModel._identity`."""
        params = self._context_params()
        system = llama_cpp.llama_print_system_info().decode()
        return f"{build()} {system} k{params.type_k} v{params.type_v} {params.flash_attn_type}"

    def _free(self) -> None:
        """See `TextModel._free`."""
        if self._embedder is not None:
            self._embedder.free()
        self._batch.free()
        llama_cpp.llama_free(self._context)
        LlamaVocabulary.close(self)


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
