"""Vectors of texts from a GGUF encoder, pooled by llama.cpp as the file says. Shapes: N texts, D width."""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeft.errors import ContextOverflow, RuntimeFault
from edgeft.runtime.llama_library import llama_cpp
from edgeft.runtime.llama_vocabulary import captured_log

POOLED = (llama_cpp.LLAMA_POOLING_TYPE_MEAN, llama_cpp.LLAMA_POOLING_TYPE_CLS, llama_cpp.LLAMA_POOLING_TYPE_LAST)


class Embedder:
    """A context of its own for the vectors of one model. Used in the model's turns."""

    def __init__(self, model: Any, path: Any, params: Any, n_ctx: int) -> None:
        """`model` is llama.cpp's, `params` those of its context for text. Raises RuntimeFault where there is none, or
        when the file names no pooling of tokens into one vector."""
        self.path, self.n_ctx = path, n_ctx
        params.embeddings = True
        params.n_batch = params.n_ubatch = n_ctx  # an encoder sees a whole text at once
        with captured_log() as log:
            self._context = llama_cpp.llama_init_from_model(model, params)
        if not self._context:
            raise RuntimeFault(f"{path}: no context of {n_ctx} tokens for vectors: {log.reason}")
        if llama_cpp.llama_pooling_type(self._context) not in POOLED:
            self.free()
            raise RuntimeFault(f"{path}: the file does not say how tokens become one vector; embed with an encoder")
        self._width = llama_cpp.llama_model_n_embd_out(model)

    def vectors(self, texts: Sequence[Sequence[int]], *, normalize: bool) -> np.ndarray:
        """(N, D) float32 of texts given as tokens. Raises ContextOverflow, RuntimeFault."""
        found = np.empty((len(texts), self._width), np.float32)
        for row, ids in zip(found, texts, strict=True):
            row[:] = self._vector(ids)
        if normalize:
            found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return found

    def free(self) -> None:
        """Release the memory."""
        llama_cpp.llama_free(self._context)

    def _vector(self, ids: Sequence[int]) -> np.ndarray:
        if not ids:
            raise RuntimeFault("there are no tokens to run; the text is empty")
        if len(ids) > self.n_ctx:
            raise ContextOverflow(f"{len(ids)} tokens do not fit the context of {self.n_ctx}; shorten the text")
        memory = llama_cpp.llama_get_memory(self._context)
        if memory:  # an encoder has none
            llama_cpp.llama_memory_clear(memory, False)
        tokens = (llama_cpp.llama_token * len(ids))(*ids)  # the batch does not keep it alive
        status = llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(tokens, len(ids)))
        if status != 0:
            raise RuntimeFault(f"{self.path}: llama.cpp did not run {len(ids)} tokens: failure {status}")
        floats = llama_cpp.llama_get_embeddings_seq(self._context, 0)
        return np.ctypeslib.as_array(ctypes.cast(floats, ctypes.POINTER(ctypes.c_float)), (self._width,))
