"""Sentencepiece's unigram model (T5, XLM-RoBERTa): llama.cpp's `t5`."""

import base64
import itertools
import json
import unicodedata
from typing import Any

from edgeft.errors import ModelError
from edgeft.export.folder import ModelFolder
from edgeft.export.gguf.architectures import Metadata
from edgeft.export.gguf.tokenizers.base import SPACE, normalizers, pre_tokenizers
from edgeft.runtime.splitting import Limit


def _has_unlike_character(text: str) -> bool:
    """A second combining mark on a letter, or a control character but the usual white space."""
    kinds = [unicodedata.category(one) for one in text]
    controls = any(kind == "Cc" and one not in "\t\n\r" for one, kind in zip(text, kinds, strict=True))
    return controls or any(one[0] == other[0] == "M" for one, other in itertools.pairwise(kinds))


LIMITS = (
    Limit("its unigram tokenizer does not take a written ▁ for a space", lambda text: SPACE in text),
    Limit("its unigram tokenizer treats control characters and second marks otherwise", _has_unlike_character),
)


def metadata(folder: ModelFolder, texts: list[str]) -> Metadata:
    """The family's own keys. Raises ModelError for steps llama.cpp does not have."""
    tokenizer = folder.tokenizer
    model = tokenizer["model"]
    if model.get("byte_fallback", False):
        raise ModelError("tokenizer.json: a unigram tokenizer with byte_fallback; llama.cpp's has no bytes")
    if not _treats_spaces_alike(tokenizer):
        raise ModelError(
            f"tokenizer.json: the normalizer {_shown(tokenizer, 'normalizer')} with the pre-tokenizer "
            f"{_shown(tokenizer, 'pre_tokenizer')} is not known to split as llama.cpp's unigram tokenizer does"
        )
    scores = [float(score) for _, score in model["vocab"]]
    keys: Metadata = {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores + [0.0] * (len(texts) - len(scores)),
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.ggml.remove_extra_whitespaces": True,
        "tokenizer.ggml.token_type_count": int(folder.config.get("type_vocab_size", 1)),
    }
    for step in normalizers(tokenizer):
        if step["type"] == "Precompiled" and step["precompiled_charsmap"]:
            keys["tokenizer.ggml.precompiled_charsmap"] = base64.b64decode(step["precompiled_charsmap"])
    return keys


def _treats_spaces_alike(tokenizer: dict[str, Any]) -> bool:
    """Whether runs of spaces become one `▁` in front of each word, and none is left at either end."""
    steps = [step for step in normalizers(tokenizer) if step["type"] != "Precompiled"]
    runs = [{"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": content} for content in (" ", SPACE)]
    strips = [step for step in steps if step["type"] == "Strip"]
    splits = [{**step, "split": True, "str_rep": None} for step in pre_tokenizers(tokenizer)]
    words = {"type": "WhitespaceSplit", "split": True, "str_rep": None}
    spaces = {
        "type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True, "str_rep": None,
    }  # fmt: skip
    rest = [step for step in steps if step not in strips and step not in runs]
    if rest or splits[-1:] != [spaces]:
        return False
    return splits == [words, spaces] or (splits == [spaces] and len(steps) > len(strips))


def _shown(tokenizer: dict[str, Any], part: str) -> str:
    text = json.dumps(tokenizer.get(part), ensure_ascii=False)
    return text if len(text) < 400 else f"{text[:400]}…"
