"""onnxruntime behind the `Model` interface, on a folder with an ONNX decoder and its tokenizer.

Only numpy, onnxruntime, tokenizers and Jinja are needed. Shapes: T tokens of a sequence, V entries of the vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.errors import ModelError, RuntimeFault
from edgeft.runtime.base import SCORE_FLOATS, TextModel
from edgeft.runtime.onnx_decoder import open_decoder
from edgeft.runtime.onnx_file import find_file
from edgeft.runtime.onnx_session import open_session
from edgeft.runtime.onnx_vocabulary import OnnxVocabulary
from edgeft.runtime.ort import onnxruntime

N_BATCH = 512
"""Most tokens of a prompt run at once."""
LENGTH_BYTES = 8
"""Of a saved state, before its keys and values: how many tokens they are of, little-endian."""


class OnnxModel(OnnxVocabulary, TextModel):
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
        huge_pages: bool = True,
    ) -> None:
        """Open the file `path`, or the one of the folder `path`; the options are those of `open_session`.

        Raises ModelError for what is missing, damaged or not to be trusted, RuntimeFault when onnxruntime refuses
        it or has none of the `providers`, UsageError for a provider that does not exist.
        """
        self.path, folder = find_file(path)
        OnnxVocabulary.__init__(self, folder)
        session, checked = open_session(
            self.path, n_threads=n_threads, providers=providers, arena=arena, spinning=spinning, huge_pages=huge_pages
        )
        self.providers: list[str] = session.get_providers()
        self.notes: list[str] = checked.notes
        self.n_threads: int = session.get_session_options().intra_op_num_threads
        trained = self.genai.get("model", {}).get("context_length") or self.config.get("max_position_embeddings")
        self.n_ctx = min(n_ctx, trained or n_ctx)
        self._decoder: Any = open_decoder(session, checked, self.cache_sizes(), self.n_ctx)
        self.n_vocab = self._decoder.n_vocab or self.config.get("vocab_size", 0)
        if not self.n_vocab:
            raise ModelError(f"{self.path}: neither the graph nor config.json says how many tokens there are")
        logits_at_once = N_BATCH if self._decoder.lean else SCORE_FLOATS // self.n_vocab
        self._n_batch = max(1, min(N_BATCH, self.n_ctx, logits_at_once))
        self.metadata |= checked.metadata
        self._n_past = 0
        TextModel.__init__(self)

    def _decode(self, ids: Sequence[int], n_logits: int) -> np.ndarray:
        """See `TextModel._decode`. A graph that gives only the last token's logits is run a token at a time for
        more."""
        if self._n_past + len(ids) > self.n_ctx:
            raise RuntimeFault(f"{self.path}: onnxruntime did not run {len(ids)} tokens: the context is full")
        if min(ids) < 0 or max(ids) >= self.n_vocab:
            raise RuntimeFault(f"{self.path}: a token id is outside the vocabulary of {self.n_vocab}")
        if n_logits > 1 and not self._decoder.all_rows:
            return np.concatenate([self._run([token], 1).copy() for token in ids])[-n_logits:]
        return self._run(ids, n_logits)

    def _decode_one(self, token: int) -> np.ndarray:
        """See `TextModel._decode_one`."""
        if self._n_past >= self.n_ctx or not 0 <= token < self.n_vocab:
            return super()._decode_one(token)  # which says what is wrong
        logits: np.ndarray = self._decoder.run_one(token, self._n_past)
        self._n_past += 1
        return logits

    def _run(self, ids: Sequence[int], n_logits: int) -> np.ndarray:
        logits: np.ndarray = self._decoder.run(ids, self._n_past, n_logits)
        self._n_past += len(ids)
        return logits

    def _keep(self, n: int) -> None:
        """See `TextModel._keep`."""
        self._decoder.keep(n)
        self._n_past = n

    def _state(self) -> bytes:
        """See `TextModel._state`."""
        held = self._decoder.save(self._n_past)
        return b"".join([self._n_past.to_bytes(LENGTH_BYTES, "little"), *(part.tobytes() for part in held)])

    def _restore(self, state: bytes) -> None:
        """See `TextModel._restore`."""
        n_past = int.from_bytes(state[:LENGTH_BYTES], "little")
        if n_past > self.n_ctx or len(state) != LENGTH_BYTES + n_past * self._decoder.bytes_per_token:
            raise RuntimeFault(f"{self.path}: this saved state is not one of this model's")
        self._decoder.restore(memoryview(state)[LENGTH_BYTES:], n_past)
        self._n_past = n_past

    def _identity(self) -> str:
        """See `TextModel._identity`."""
        return f"onnxruntime {onnxruntime.__version__}, {self.providers[0]}, {self._decoder.layout}"

    def _free(self) -> None:
        """See `TextModel._free`."""
        del self._decoder
