"""Encoders in onnxruntime: labels of texts, labels of tokens, vectors.

Texts of like length share a batch, so that little of it is padding.

Shapes: N texts, B texts of a batch, S tokens of its longest, C classes, D width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from edgeft.errors import ContextOverflow, ModelError, RuntimeFault
from edgeft.runtime.encoder_folder import Confidence
from edgeft.runtime.freed_memory import give_back
from edgeft.runtime.model import Classification
from edgeft.runtime.onnx_file import find_file
from edgeft.runtime.onnx_session import open_session, run_fault
from edgeft.runtime.onnx_vocabulary import OnnxVocabulary, read_json

BATCH_TEXTS, BATCH_TOKENS = 32, 4096
"""Most texts, and most tokens with padding, of a batch."""
UNLIMITED = 1_000_000
"""A `model_max_length` above this is transformers' way of saying that there is none."""
MULTI_LABEL = "multi_label_classification"

TooLong = Literal["truncate", "error"]


@dataclass(frozen=True)
class TokenLabel:
    """The label of one token and where it stands in its text: characters `start` to `end`."""

    label: str
    probability: float
    start: int
    end: int


class EncoderModel(OnnxVocabulary):
    """An encoder's folder, opened. May be used from many threads at once."""

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int | None = None,
        on_too_long: TooLong = "truncate",
        n_threads: int | None = None,
        providers: Sequence[str] = (),
        arena: bool = True,
        spinning: bool = True,
        huge_pages: bool = True,
    ) -> None:
        """Open the file `path`, or the one of the folder `path`; the options are those of `open_session`.

        A text of more than `n_ctx` tokens (None: as many as the model takes) is cut at its end, or is an error.
        Raises ModelError for what is missing, damaged or no encoder, RuntimeFault when onnxruntime refuses it or has
        none of the `providers`, UsageError for a provider that does not exist.
        """
        self.path, folder = find_file(Path(path))
        super().__init__(folder)
        session, checked = open_session(
            self.path, n_threads=n_threads, providers=providers, arena=arena, spinning=spinning, huge_pages=huge_pages
        )
        self._session: Any = session
        self.providers: list[str] = session.get_providers()
        self.notes: list[str] = checked.notes
        self.n_threads: int = session.get_session_options().intra_op_num_threads
        self._inputs = [each.name for each in session.get_inputs()]
        self._outputs = {each.name: len(each.shape) for each in session.get_outputs()}
        unknown = set(self._inputs) - {"input_ids", "attention_mask", "token_type_ids"}
        if unknown or "input_ids" not in self._inputs:
            raise ModelError(
                f"{self.path}: no encoder (its graph has the inputs {', '.join(self._inputs)}); open it with "
                "edgeft.runtime.load"
            )
        self.metadata |= {f"onnx.{key}": value for key, value in checked.metadata.items()}
        self.n_ctx = self._longest(n_ctx)
        self.confidence = Confidence.read(folder)
        named = self.config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
        self.labels = [str(named[key]) for key in sorted(named, key=int)]
        self._pad_id = self.config.get("pad_token_id") or 0
        self._on_too_long = on_too_long
        if on_too_long == "truncate":
            self._tokenizer.enable_truncation(self.n_ctx)

    def classify(
        self, texts: Sequence[str], *, temperature: float | None = None, threshold: float | None = None
    ) -> list[Classification]:
        """The label of each text with the probabilities of all.

        `temperature` and `threshold` None are those found when the model was exported (`confidence.json`), else 1
        and 0. Raises ModelError when the model does not choose one label a text, ContextOverflow for a text that is
        too long under `on_too_long="error"`, RuntimeFault when the runtime fails.
        """
        temperature = self.confidence.temperature if temperature is None else temperature
        threshold = self.confidence.threshold if threshold is None else threshold
        answers = []
        for row in _softmax(self.logits(texts) / temperature):
            order = np.argsort(-row, kind="stable")
            probabilities = {self.labels[place]: float(row[place]) for place in order}
            best = order[0]
            answers.append(Classification(self.labels[best] if row[best] >= threshold else None, probabilities))
        return answers

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """(N, C) float64, before temperature and softmax. Raises as `classify`."""
        if self._outputs.get("logits") != 2 or len(self.labels) < 2:
            raise ModelError(f"{self.path}: the graph has no classes of texts; train a classifier, or use embed or tag")
        if self.config.get("problem_type") == MULTI_LABEL:
            raise ModelError(f"{self.path}: several labels may hold for one text; classify chooses one")
        return self._vectors(texts, "logits", len(self.labels)).astype(np.float64)

    def embed(self, texts: Sequence[str], *, normalize: bool = True) -> np.ndarray:
        """Vectors (N, D), float32, pooled as the model was trained; of length 1 with `normalize`.

        Raises ModelError when the graph has no pooled vector, and as `classify`.
        """
        if "sentence_embedding" not in self._outputs:
            raise ModelError(
                f"{self.path}: the graph has no sentence_embedding; export a sentence-transformers folder, whose "
                "modules.json says how its tokens are pooled"
            )
        vectors = self._vectors(texts, "sentence_embedding", self.config.get("hidden_size") or self.config["dim"])
        if not normalize:
            return vectors
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: np.ndarray = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
        return unit

    def tag(self, texts: Sequence[str]) -> list[list[TokenLabel]]:
        """The label of every token of each text, special tokens left out. Raises as `classify`."""
        if self._outputs.get("logits") != 3:
            raise ModelError(f"{self.path}: the graph has no classes of tokens; use classify or embed")
        found: list[list[TokenLabel]] = [[] for _ in texts]
        for rows, encoded, values in self._batches(texts, "logits"):
            probabilities = _softmax(values.astype(np.float64))
            for row, encoding, of_tokens in zip(rows, encoded, probabilities, strict=True):
                real = zip(encoding.special_tokens_mask, encoding.offsets, of_tokens, strict=False)
                found[row] = [
                    TokenLabel(self.labels[int(each.argmax())], float(each.max()), *offsets)
                    for special, offsets, each in real
                    if not special
                ]
        return found

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as it is run, special ones included."""
        return [len(encoding.ids) for encoding in self._encode(texts)]

    def close(self) -> None:
        """Free the memory. The model cannot be used afterwards; closing twice does no harm."""
        self._session = None
        give_back()

    def keep_prefixes(self, folder: Path) -> None:
        """Nothing: an encoder has no prompts to keep. `edgeft.runtime.load` asks every model."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _vectors(self, texts: Sequence[str], output: str, width: int) -> np.ndarray:
        """One row of `output` a text, (N, width)."""
        found = np.zeros((len(texts), width), np.float32)
        for rows, _, values in self._batches(texts, output):
            found[rows] = values
        return found

    def _batches(self, texts: Sequence[str], output: str) -> Iterator[tuple[list[int], list[Any], np.ndarray]]:
        """Places in `texts`, their encodings and `output` (B, …) of each batch."""
        encoded = self._encode(texts)
        for rows in _by_length([len(each.ids) for each in encoded]):
            chosen = [encoded[row] for row in rows]
            yield rows, chosen, self._run([each.ids for each in chosen], output)

    def _encode(self, texts: Sequence[str]) -> list[Any]:
        if isinstance(texts, str):
            raise ModelError("texts: give a list of texts, not one text")
        clean = [text.encode(errors="replace").decode() for text in texts]  # a lone surrogate is no character
        encoded: list[Any] = self._tokenizer.encode_batch(clean)
        for place, each in enumerate(encoded):
            if len(each.ids) > self.n_ctx:
                raise ContextOverflow(
                    f"text {place} has {len(each.ids)} tokens, the model takes {self.n_ctx}; shorten it, or open the "
                    "model with on_too_long='truncate'"
                )
        return encoded

    def _run(self, tokens: Sequence[Sequence[int]], output: str) -> np.ndarray:
        ids = np.full((len(tokens), max(map(len, tokens))), self._pad_id, np.int64)
        mask = np.zeros_like(ids)
        for row, each in enumerate(tokens):
            ids[row, : len(each)], mask[row, : len(each)] = each, 1
        every = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        session = self._session
        if session is None:
            raise RuntimeFault(f"{self.path}: the model was closed; open it again")
        try:
            (values,) = session.run([output], {name: every[name] for name in self._inputs})
        except Exception as error:  # onnxruntime's exceptions share no class of their own
            raise run_fault(self.path, error) from None
        result: np.ndarray = values
        return result

    def _longest(self, n_ctx: int | None) -> int:
        """The smallest limit among the caller's, the graph's and the tokenizer's."""
        trained = self.metadata.get("onnx.edgeft.n_ctx") or self.config.get("max_position_embeddings")
        tokenizer = read_json(self.folder / "tokenizer_config.json").get("model_max_length")
        limits = [int(limit) for limit in (n_ctx, trained, tokenizer) if limit is not None]
        return min(*limits, UNLIMITED, UNLIMITED)


def _by_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places in rising length, cut into batches."""
    batch: list[int] = []
    for place in np.argsort(lengths, kind="stable").tolist():
        if batch and (len(batch) == BATCH_TEXTS or (len(batch) + 1) * lengths[place] > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _softmax(scores: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(axis=-1, keepdims=True)
    return shares
