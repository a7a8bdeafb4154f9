"""The vocabulary of a GGUF file in llama.cpp: tokenizer, chat template and metadata, without the weights."""

import ctypes
import os
import threading
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from edgeft.errors import ModelError, RuntimeFault
from edgeft.runtime.byte_level import NORMALIZER_KEY as NORMALIZER_KEY
from edgeft.runtime.gguf_format import Header, read_header
from edgeft.runtime.llama_build import start
from edgeft.runtime.llama_library import llama_cpp
from edgeft.runtime.llama_limits import file_limits, ordinary_tokens
from edgeft.runtime.model import Message
from edgeft.runtime.own_tokenizer import OwnTokenizer
from edgeft.runtime.template import ChatTemplate

WARN, ERROR, CONTINUED = 3, 4, 5
SPECIAL = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
PIECE_BYTES = 256
"""Bytes a token may have before it is read again."""
TEMPLATE_KEY = "tokenizer.chat_template"
TEMPLATE_TOKENS = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "pad": "padding",
    "sep": "seperator",
    "cls": "cls",
    "mask": "mask",
}
"""Special tokens a template may name: transformers' word for each, and the GGUF key's (spelled as there)."""


class CapturedLog:
    """What llama.cpp complained about."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []

    @property
    def text(self) -> str:
        """All warnings and errors on one line."""
        return " ".join(text for _, text in self.lines)

    @property
    def reason(self) -> str:
        """The first error, which is the cause of the others; without errors the first warning."""
        lines = sorted(self.lines, key=lambda line: -line[0])
        return next((text for _, text in lines if text), "it gave no reason")


@contextmanager
def captured_log() -> Iterator[CapturedLog]:
    """Collect llama.cpp's warnings and errors while the block lasts; afterwards it is silent."""
    log = CapturedLog()
    latest = 0

    @llama_cpp.llama_log_callback
    def collect(level: int, text: bytes, _: Any) -> None:
        nonlocal latest
        latest = latest if level == CONTINUED else level
        if latest in (WARN, ERROR):
            log.lines.append((latest, text.decode(errors="replace").strip()))

    llama_cpp.llama_log_set(collect, ctypes.c_void_p(0))
    try:
        yield log
    finally:
        llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, _: Any) -> None:
    pass


class LlamaVocabulary:
    """The tokenizer, chat template and metadata of a GGUF file; no weights are loaded."""

    def __init__(
        self, path: Path, *, header: Header | None = None, vocab_only: bool = True, n_gpu_layers: int = 0
    ) -> None:
        """`header`: the file's, where it was read before. Raises RuntimeFault when llama.cpp refuses the file."""
        self.path = path
        self._model = _open(path, vocab_only, n_gpu_layers)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self.metadata = _metadata(self._model)
        header = header or read_header(path)
        self.ordinary = ordinary_tokens(header)
        """Tokens that look like control tokens to llama.cpp and are none."""
        self.limits = file_limits(header, self.ordinary)
        """Texts that llama.cpp tokenizes otherwise than the tokenizer the vocabulary came from."""
        ends = (token for token in range(self.n_vocab) if llama_cpp.llama_vocab_is_eog(self._vocab, token))
        self.eos_ids = frozenset(ends) - self.ordinary.at_ends
        self._own: OwnTokenizer | None = None
        self._template: ChatTemplate | None = None
        self._composes = self.metadata.get(NORMALIZER_KEY) == "NFC"
        self._in_use = threading.Lock()
        """Held while llama.cpp reads the vocabulary, so that no other thread frees it meanwhile."""
        self._alphabet = _alphabet(self._vocab, self.n_vocab)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """See `Model.render`."""
        return self._chat_template().render(messages, tools=tools, add_generation_prompt=add_generation_prompt)

    def check_chat(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> None:
        """See `TextModel.check_chat`."""
        self._chat_template().check(messages, tools)

    def _chat_template(self) -> ChatTemplate:
        if self._template is None:
            source = self.metadata.get(TEMPLATE_KEY)
            if not source:
                raise ModelError(f"{self.path}: the file has no chat template; it cannot answer messages")
            self._template = ChatTemplate(source, self._template_variables())
        return self._template

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """See `Model.tokenize`. With `add_special` the BOS and EOS the file asks for are added.

        Of a text that llama.cpp would tokenize otherwise than the vocabulary's own tokenizer (`limits`), the ids are
        that tokenizer's. Raises RuntimeFault for a character that the vocabulary has no way to write.
        """
        if unwritable := self.unwritable(text):
            raise RuntimeFault(
                f"{self.path}: the vocabulary has no token for {unwritable[0]!r} and no bytes to spell it; leave it out"
            )
        text = self.normalized(text)
        if not any(limit.concerns(text) for limit in self.limits):
            return self.llama_ids(text, add_special=add_special)
        if self._own is None:
            self._own = OwnTokenizer(self)
        return self._own.ids(text, add_special=add_special)

    def normalized(self, text: str) -> str:
        """`text` as llama.cpp is given it."""
        return unicodedata.normalize("NFC", text) if self._composes else text

    def llama_ids(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """What llama.cpp makes of `text`, limits and all."""
        # A lone surrogate is no character; its bytes would end the process inside llama.cpp.
        encoded = text.encode(errors="replace")
        size = len(encoded) + 2
        with self._in_use:
            self._check_open()
            while True:
                ids = (llama_cpp.llama_token * size)()
                n = llama_cpp.llama_tokenize(self._vocab, encoded, len(encoded), ids, size, add_special, parse_special)
                if n >= 0:
                    return ids[:n]
                size = -n

    def detokenize(self, ids: Sequence[int]) -> str:
        """See `Model.detokenize`."""
        if not self.ordinary.at_ends.isdisjoint(ids):
            return b"".join(self._piece(token, special=token in self.ordinary.at_ends) for token in ids).decode(
                errors="replace"
            )
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        size = 16 * len(ids) + 16
        with self._in_use:
            self._check_open()
            while True:
                text = ctypes.create_string_buffer(size)
                n = llama_cpp.llama_detokenize(self._vocab, tokens, len(ids), text, size, False, False)
                if n >= 0:
                    return text.raw[:n].decode(errors="replace")
                size = -n

    def token_bytes(self) -> list[bytes]:
        """See `TextModel.token_bytes`."""
        buffer = ctypes.create_string_buffer(PIECE_BYTES)
        with self._in_use:
            self._check_open()
            read = llama_cpp.llama_token_to_piece
            sizes = ((read(self._vocab, token, buffer, PIECE_BYTES, 0, True), token) for token in range(self.n_vocab))
            return [buffer.raw[:size] if size >= 0 else self._long_piece(token, -size) for size, token in sizes]

    def _piece(self, token: int, *, special: bool) -> bytes:
        """The text of one token; of a special one only if asked for."""
        buffer = ctypes.create_string_buffer(PIECE_BYTES)
        with self._in_use:
            self._check_open()
            size = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, PIECE_BYTES, 0, special)
            return buffer.raw[:size] if size >= 0 else self._long_piece(token, -size)

    def _long_piece(self, token: int, size: int) -> bytes:
        buffer = ctypes.create_string_buffer(size)
        return buffer.raw[: llama_cpp.llama_token_to_piece(self._vocab, token, buffer, size, 0, True)]

    def special_ids(self) -> frozenset[int]:
        """See `TextModel.special_ids`."""
        with self._in_use:
            self._check_open()
            attributes = (llama_cpp.llama_vocab_get_attr(self._vocab, token) for token in range(self.n_vocab))
            special = frozenset(token for token, attribute in enumerate(attributes) if attribute & SPECIAL)
            return special - self.ordinary.at_ends

    def unwritable(self, text: str) -> str:
        """The characters of `text` that `tokenize` has no ids for; empty for nearly every vocabulary."""
        return "" if self._alphabet is None else self._alphabet.unwritable(text)

    def token_text(self, token: int) -> str:
        """The text of one entry of the vocabulary as the file spells it."""
        with self._in_use:
            self._check_open()
            text: bytes = llama_cpp.llama_vocab_get_text(self._vocab, token)
            return text.decode(errors="replace")

    def is_control(self, token: int) -> bool:
        """Whether `token` is a special token that no ordinary text contains."""
        with self._in_use:
            self._check_open()
            return token not in self.ordinary.at_ends and bool(llama_cpp.llama_vocab_is_control(self._vocab, token))

    def special_id(self, name: str) -> int | None:
        """The id the file names for `bos`, `eos`, `eot`, `padding`, …, or None."""
        value = self.metadata.get(f"tokenizer.ggml.{name}_token_id")
        return None if value is None else int(value)

    def close(self) -> None:
        """Free the memory; closing twice does no harm."""
        with self._in_use:
            if self._model is not None:
                llama_cpp.llama_model_free(self._model)
                self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._model is None:
            raise RuntimeFault(f"{self.path}: this model was closed")

    def _template_variables(self) -> dict[str, str]:
        ids = {ours: self.special_id(theirs) for ours, theirs in TEMPLATE_TOKENS.items()}
        return {f"{name}_token": self.token_text(token) for name, token in ids.items() if token is not None}


class _Alphabet(NamedTuple):
    """The characters a sentencepiece vocabulary without byte tokens can write.

    llama.cpp ends the process when such a vocabulary meets any other character.
    """

    characters: frozenset[str]
    special: tuple[str, ...]

    def unwritable(self, text: str) -> str:
        """The characters of `text`, special tokens left out, that have no token."""
        for token in self.special:
            text = text.replace(token, "")
        return "".join(sorted(set(text) - self.characters))


def _alphabet(vocab: Any, n_vocab: int) -> _Alphabet | None:
    """None for every vocabulary that can write anything."""
    if llama_cpp.llama_vocab_type(vocab) != llama_cpp.LLAMA_VOCAB_TYPE_SPM:
        return None
    ordinary, named = set(), []
    for token in range(n_vocab):
        text = llama_cpp.llama_vocab_get_text(vocab, token).decode(errors="replace")
        if text == "<0x0A>":
            return None
        if llama_cpp.llama_vocab_get_attr(vocab, token) & SPECIAL:
            named.append(text)
        else:
            ordinary.add(text)
    characters = frozenset(piece.replace("▁", " ") for piece in ordinary if len(piece) == 1)
    return _Alphabet(characters, tuple(sorted(named, key=len, reverse=True)))


def _open(path: Path, vocab_only: bool, n_gpu_layers: int) -> Any:
    start()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = vocab_only
    params.n_gpu_layers = n_gpu_layers
    with captured_log() as log:
        model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise RuntimeFault(f"{path}: llama.cpp refused the file: {log.reason}")
    return model


def _metadata(model: Any) -> dict[str, str]:
    indices = range(llama_cpp.llama_model_meta_count(model))
    keys = [_text(llama_cpp.llama_model_meta_key_by_index, model, index) for index in indices]
    values = [_text(llama_cpp.llama_model_meta_val_str_by_index, model, index) for index in indices]
    return dict(sorted(zip(keys, values, strict=True)))


def _text(read: Any, model: Any, index: int) -> str:
    """A string llama.cpp copies into a buffer; it answers with the whole length."""
    size = 1 << 12
    while True:
        buffer = ctypes.create_string_buffer(size)
        length = read(model, index, buffer, size)
        if length < size:
            return buffer.value.decode(errors="replace")
        size = length + 1
