"""WordPiece (BERT): llama.cpp's `bert`.

llama.cpp looks a word up with `▁` in front and the rest of a word without the `##` the tokenizer writes.
"""

import json
import unicodedata
from typing import Any

from gguf import TokenType

from edgeft.errors import ModelError
from edgeft.export.folder import ModelFolder
from edgeft.export.gguf.architectures import Metadata
from edgeft.export.gguf.tokenizers.base import SPACE, normalizers, pre_tokenizers
from edgeft.runtime.splitting import Limit

PREFIX = "##"


def _has_unlike_character(text: str) -> bool:
    return any(map(_is_unlike, text))


def _is_unlike(one: str) -> bool:
    """Marks, letters that decompose into letters (Hangul), control characters but the usual white space, and what
    another version of Unicode sees as punctuation."""
    if " " <= one < "\x7f" or one in "\t\n\r":
        return False
    kind = unicodedata.category(one)
    if one == SPACE:  # what llama.cpp marks the start of a word with
        return True
    decomposes = kind == "Lo" and unicodedata.normalize("NFD", one) != one
    young = kind[0] in "PS" and unicodedata.ucd_3_2_0.category(one) == "Cn"
    return decomposes or young or kind[0] == "M" or kind in ("Cc", "Cf", "Cn")


LIMITS = (
    Limit(
        "its WordPiece treats marks, Hangul, control characters and rare punctuation otherwise", _has_unlike_character
    ),
)


def metadata(folder: ModelFolder) -> Metadata:
    """The family's own keys. Raises ModelError for a normalizer or pre-tokenizer other than BERT's."""
    tokenizer = folder.tokenizer
    lower, accents = _folding(tokenizer)
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.normalizer.lowercase": lower,
        "tokenizer.ggml.normalizer.strip_accents": accents,
        "tokenizer.ggml.token_type_count": int(folder.config.get("type_vocab_size", 1)),
    }


def phantom_spaces(texts: list[str], types: list[int]) -> list[str]:
    """The vocabulary as llama.cpp spells it: ordinary tokens that begin a word get `▁`, the others lose `##`."""
    ordinary = int(TokenType.NORMAL)
    return [_spelled(text) if kind == ordinary else text for text, kind in zip(texts, types, strict=True)]


def _spelled(text: str) -> str:
    return text.removeprefix(PREFIX) if text.startswith(PREFIX) else SPACE + text


def _folding(tokenizer: dict[str, Any]) -> tuple[bool, bool]:
    """Whether letters are made small and accents taken off."""
    steps, splits = normalizers(tokenizer), [step["type"] for step in pre_tokenizers(tokenizer)]
    prefix = tokenizer["model"].get("continuing_subword_prefix", PREFIX)
    if len(steps) == 1 and steps[0]["type"] == "BertNormalizer" and splits == ["BertPreTokenizer"] and prefix == PREFIX:
        bert = steps[0]
        if bert.get("clean_text", True) and bert.get("handle_chinese_chars", True):
            lower = bool(bert.get("lowercase", True))
            accents = bert.get("strip_accents")
            return lower, lower if accents is None else bool(accents)
    raise ModelError(
        f"tokenizer.json: the normalizer {json.dumps(tokenizer.get('normalizer'))} with the pre-tokenizer "
        f"{json.dumps(tokenizer.get('pre_tokenizer'))} and the prefix {prefix!r} is not BERT's, "
        "the only WordPiece llama.cpp has"
    )
