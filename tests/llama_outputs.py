"""What llama.cpp computes of a GGUF file, for comparisons with transformers.

Shapes: T tokens, D width of the model, C classes.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from edgeft.runtime.llama import LlamaModel


class ExactLlama(LlamaModel):
    """Keeps keys and values as float32, where llama.cpp rounds them to F16 by default: only the file can differ."""

    def __init__(self, path: Path, *, n_ctx: int) -> None:
        super().__init__(path, n_ctx=n_ctx, n_threads=1, n_gpu_layers=0)

    def _context_params(self) -> Any:
        params = super()._context_params()
        params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        return params


class LlamaEncoder(ExactLlama):
    """Gives embeddings, pooled as the file says."""

    def embed(self, ids: Sequence[int]) -> np.ndarray:
        """The vector (D,) or class scores (C,) of a text, or without pooling the vector of each token (T, D)."""
        status = llama_cpp.llama_encode(self._context, self._batch.filled(ids, 0, len(ids)))
        assert status == 0, status
        width = llama_cpp.llama_model_n_embd_out(self._model)
        pooling = llama_cpp.llama_pooling_type(self._context)
        if pooling == llama_cpp.LLAMA_POOLING_TYPE_NONE:
            return self._floats(llama_cpp.llama_get_embeddings(self._context), (len(ids), width))
        if pooling == llama_cpp.LLAMA_POOLING_TYPE_RANK:
            width = llama_cpp.llama_model_n_cls_out(self._model)
        return self._floats(llama_cpp.llama_get_embeddings_seq(self._context, 0), (width,))

    def _context_params(self) -> Any:
        params = super()._context_params()
        params.embeddings = True
        return params

    @staticmethod
    def _floats(pointer: Any, shape: tuple[int, ...]) -> np.ndarray:
        floats = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(floats, shape).copy()
