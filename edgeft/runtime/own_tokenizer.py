"""Ids for the texts that llama.cpp tokenizes otherwise than a vocabulary's own tokenizer does."""

import re
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgeft.runtime.byte_level import open_tokenizer
from edgeft.runtime.gguf_format import read_header
from edgeft.runtime.llama_limits import CONTROL, UNKNOWN, USER_DEFINED

if TYPE_CHECKING:
    from edgeft.runtime.llama_vocabulary import LlamaVocabulary


class OwnTokenizer:
    """Byte-level BPE by the library `tokenizers`; of another vocabulary llama.cpp is given what lies between the
    special tokens, found by the types the file gives them. Threads may share one."""

    def __init__(self, vocabulary: "LlamaVocabulary") -> None:
        self._vocabulary = vocabulary
        header = read_header(vocabulary.path)
        self._tokenizer = open_tokenizer(header)
        types = header.get("tokenizer.ggml.token_type") or ()
        tokens = header.get("tokenizer.ggml.tokens")
        special = {
            tokens[token].decode(errors="replace"): token
            for token, kind in enumerate(types)
            if kind in (CONTROL, USER_DEFINED, UNKNOWN)
        }
        self._special = special
        longest_first = sorted(special, key=len, reverse=True)
        self._cuts = re.compile("|".join(map(re.escape, longest_first))) if special else None
        self._in_use = threading.Lock()

    def ids(self, text: str, *, add_special: bool = False) -> list[int]:
        """The ids of `text`; see `LlamaVocabulary.tokenize`."""
        if self._tokenizer is None:
            found = list(self._between(text))
        else:
            with self._in_use:
                found = self._tokenizer.encode(text.encode(errors="replace").decode(), add_special_tokens=False).ids
        if not add_special:
            return found
        around = self._vocabulary.llama_ids("", add_special=True)
        begins = around[:1] if len(around) > 1 or around[:1] == [self._vocabulary.special_id("bos")] else []
        return begins + found + around[len(begins) :]

    def _between(self, text: str) -> Iterator[int]:
        at = 0
        for cut in self._cuts.finditer(text) if self._cuts else ():
            yield from self._ordinary(text[at : cut.start()])
            yield self._special[cut.group()]
            at = cut.end()
        yield from self._ordinary(text[at:])

    def _ordinary(self, text: str) -> list[int]:
        return self._vocabulary.llama_ids(text, parse_special=False) if text else []
