"""The byte-level BPE of a GGUF file as a `tokenizer.json`, and as a tokenizer that answers where llama.cpp cannot."""

import json
from collections.abc import Sequence
from typing import Any

from edgeft.errors import ModelError
from edgeft.runtime.gguf_format import Header
from edgeft.runtime.llama_limits import CONTROL, UNKNOWN, USER_DEFINED
from edgeft.runtime.splitting import WORDS, definition_of

UNUSED = 5
NORMALIZER_KEY = "edgeft.normalizer"
"""What is done to a text before llama.cpp, which cannot, tokenizes it: `NFC` or nothing."""


def byte_level_definition(header: Header, tokens: Sequence[str], types: Sequence[int]) -> dict[str, Any]:
    """The keys of a `tokenizer.json` that are the family's own. Raises ModelError for a rule without a definition."""
    rule = header.get("tokenizer.ggml.pre")
    found = definition_of(rule)
    if found is None:
        raise ModelError(f"{header.path}: the splitting rule {rule!r} (tokenizer.ggml.pre) cannot be imported")
    steps, pre = found
    merges = [merge.decode(errors="replace") for merge in header.get("tokenizer.ggml.merges")]
    return {
        "normalizer": {"type": "NFC"} if header.get(NORMALIZER_KEY) == "NFC" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": WORDS,
        "model": bpe_model(tokens, types, merges, ignore_merges=pre.ignore_merges),
    }


def bpe_model(tokens: Sequence[str], types: Sequence[int], merges: Sequence[str], **fields: Any) -> dict[str, Any]:
    """The `model` of a `tokenizer.json`; `fields` replace what most have."""
    plain: dict[str, Any] = dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    plain |= dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False)
    vocab = {text: index for index, text in enumerate(tokens) if types[index] != UNUSED}
    return {"type": "BPE", **plain, **fields, "vocab": vocab, "merges": list(merges)}


def open_tokenizer(header: Header) -> Any:
    """A tokenizer (of the library `tokenizers`) that gives what llama.cpp would give if it could; None for a
    vocabulary that is not byte-level or has a rule without a definition."""
    if header.get("tokenizer.ggml.model") != "gpt2" or definition_of(header.get("tokenizer.ggml.pre")) is None:
        return None
    from tokenizers import Tokenizer  # nearly no text needs it

    tokens = [token.decode(errors="replace") for token in header.get("tokenizer.ggml.tokens")]
    types = header.get("tokenizer.ggml.token_type")
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": index, "content": tokens[index], "special": kind != USER_DEFINED, **flags}
        for index, kind in enumerate(types)
        if kind in (CONTROL, USER_DEFINED, UNKNOWN)
    ]
    parts = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "post_processor": None}
    return Tokenizer.from_str(json.dumps(parts | byte_level_definition(header, tokens, types)))
