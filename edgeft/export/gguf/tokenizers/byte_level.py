"""Byte-level BPE (GPT-2 and later): llama.cpp's `gpt2`."""

import json
from typing import Any

from edgeft.errors import ModelError
from edgeft.export.folder import ModelFolder
from edgeft.export.gguf.architectures import Metadata
from edgeft.export.gguf.tokenizers.base import added_tokens, merge_parts, normalizers, pre_tokenizers
from edgeft.export.gguf.tokenizers.pretokenizers import find_pre_tokenizer, is_gpt2_rule
from edgeft.runtime.llama_limits import byte_limits, missing_bytes
from edgeft.runtime.llama_vocabulary import NORMALIZER_KEY
from edgeft.runtime.splitting import Limit, PreTokenizer

MASK_EATS_SPACE = PreTokenizer("jina-v2-code", clean_spaces=True)
"""GPT-2's rule under the one name by which `<mask>` takes the white space before it, as RoBERTa's does."""


def is_byte_level(tokenizer: dict[str, Any]) -> bool:
    """Whether a BPE tokenizer works on bytes."""
    return any(step["type"] == "ByteLevel" for step in pre_tokenizers(tokenizer))


def metadata(folder: ModelFolder) -> Metadata:
    """The family's own keys. Raises ModelError when llama.cpp cannot normalize or split as the tokenizer does."""
    tokenizer = folder.tokenizer
    keys: Metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre_tokenizer(folder).name}
    steps = [step["type"] for step in normalizers(tokenizer)]
    if steps == ["NFC"]:
        # llama.cpp does not compose characters. Most text already is composed; our runtime composes the rest.
        keys[NORMALIZER_KEY] = "NFC"
    elif steps:
        definition = json.dumps(tokenizer["normalizer"])
        raise ModelError(f"tokenizer.json: llama.cpp's byte-level BPE has no normalizer {definition}")
    merges = tokenizer["model"].get("merges", [])
    if not merges:
        raise ModelError("tokenizer.json: no merges; llama.cpp needs at least one in byte-level BPE")
    keys["tokenizer.ggml.merges"] = [" ".join(merge_parts(merge)) for merge in merges]
    return keys


def pre_tokenizer(folder: ModelFolder) -> PreTokenizer:
    """The splitting rule by llama.cpp's name. Raises ModelError when it has none that splits the same."""
    clean_spaces = bool(folder.tokenizer_config.get("clean_up_tokenization_spaces", False))
    found = find_pre_tokenizer(folder.tokenizer, clean_spaces=clean_spaces)
    mask_strips = any(token["content"] == "<mask>" and token["lstrip"] for token in added_tokens(folder.tokenizer))
    return MASK_EATS_SPACE if mask_strips and is_gpt2_rule(folder.tokenizer) else found


def limits(folder: ModelFolder) -> tuple[Limit, ...]:
    """What llama.cpp is known to tokenize otherwise with this vocabulary."""
    return (*pre_tokenizer(folder).limits, *byte_limits(missing_bytes(folder.token_ids)))
