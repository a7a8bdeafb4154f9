"""tokenizer.json, tokenizer_config.json and generation_config.json for the `tokenizer.*` keys of a GGUF file.

The families of the exporter: byte-level BPE, sentencepiece's BPE, whose merges are found again from the scores
(llama.cpp joins the neighbours whose joined piece scores highest), its unigram model, and WordPiece. Whether the ids
are the same is not taken on trust: `edgeft.export.gguf.verify` compares them.
"""

import base64
from typing import Any

from gguf import TokenType

from edgeft.errors import ModelError
from edgeft.export.gguf.tokenizers.base import SPACE
from edgeft.export.gguf.tokenizers.byte_level import MASK_EATS_SPACE
from edgeft.export.gguf.tokenizers.sentencepiece import PHI3_KEEPS_SPACE
from edgeft.export.gguf.tokenizers.wordpiece import PREFIX
from edgeft.runtime.byte_level import bpe_model, byte_level_definition
from edgeft.runtime.gguf_format import Header
from edgeft.runtime.header_vocabulary import added_around, special_id
from edgeft.runtime.splitting import definition_of

ADDED = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
NAMES = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "cls": "cls", "mask": "mask",
}  # fmt: skip
STOPS = ("eos", "eot", "eom")


def tokenizer_files(header: Header) -> dict[str, dict[str, Any]]:
    """{file name: content}. Raises ModelError, naming the kind or rule, for a tokenizer of another family or whose
    splitting rule is unknown."""
    kind = header.get("tokenizer.ggml.model")
    if kind not in FAMILIES:
        raise ModelError(
            f"{header.path}: a tokenizer of the kind {kind!r} cannot be imported; only {', '.join(FAMILIES)}"
        )
    tokens = _texts(header)
    types = list(header.get("tokenizer.ggml.token_type") or [TokenType.NORMAL] * len(tokens))
    # What llama.cpp does by the names of a model and of a pre-tokenizer.
    strips_right = any(name in str(header.get("general.name", "")).lower() for name in ("phi-3", "phi3"))
    strips_left = "<mask>" if header.get("tokenizer.ggml.pre") == MASK_EATS_SPACE.name else None
    added = [
        {
            "id": index,
            "content": tokens[index],
            "special": types[index] != TokenType.USER_DEFINED,
            **dict.fromkeys(("single_word", "normalized"), False),
            "lstrip": tokens[index] == strips_left,
            "rstrip": strips_right and tokens[index] not in PHI3_KEEPS_SPACE,
        }
        for index in range(len(tokens))
        if types[index] in ADDED
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "post_processor": _post_processor(header, tokens),
        **FAMILIES[kind](header, tokens, types),
    }
    return {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": _tokenizer_config(header, tokens),
        "generation_config.json": _generation_config(header),
    }


def _texts(header: Header) -> list[str]:
    try:
        return [token.decode() for token in header.get("tokenizer.ggml.tokens")]
    except UnicodeDecodeError as error:
        raise ModelError(f"{header.path}: the token {error.object!r} is not UTF-8; it cannot be imported") from None


def _sentencepiece(header: Header, tokens: list[str], types: list[int]) -> dict[str, Any]:
    prefix = header.get("tokenizer.ggml.add_space_prefix", True)
    return _pieces(header, tokens, types, _merges(header, tokens, types), prefix=prefix)


def _pieces(header: Header, tokens: list[str], types: list[int], merges: list[str], *, prefix: bool) -> dict[str, Any]:
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    unknown = next((tokens[index] for index, kind in enumerate(types) if kind == TokenType.UNKNOWN), None)
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": bpe_model(
            tokens, types, merges, unk_token=unknown, fuse_unk=True, byte_fallback=TokenType.BYTE in types
        ),
    }


def _gemma4(header: Header, tokens: list[str], types: list[int]) -> dict[str, Any]:
    """Gemma 3's pieces with the merges written out."""
    merges = [merge.decode(errors="replace") for merge in header.get("tokenizer.ggml.merges")]
    return _pieces(header, tokens, types, merges, prefix=False)


def _unigram(header: Header, tokens: list[str], types: list[int]) -> dict[str, Any]:
    charsmap = header.get("tokenizer.ggml.precompiled_charsmap")
    folded = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(bytes(charsmap or b"")).decode()}
    runs = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    strip = {"type": "Strip", "strip_left": True, "strip_right": True}
    spaces = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}
    scores = header.get("tokenizer.ggml.scores")
    if scores is None:
        raise ModelError(f"{header.path}: tokenizer.ggml.scores is missing")
    used = max(index for index, kind in enumerate(types) if kind != TokenType.UNUSED) + 1
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*([folded] if charsmap else []), strip, runs]},
        "pre_tokenizer": spaces,
        "decoder": spaces,
        "model": {
            "type": "Unigram",
            "unk_id": header.get("tokenizer.ggml.unknown_token_id"),
            "vocab": [[text, score] for text, score in zip(tokens[:used], scores, strict=False)],
            "byte_fallback": False,
        },
    }


def _word_piece(header: Header, tokens: list[str], types: list[int]) -> dict[str, Any]:
    """llama.cpp marks the beginning of a word, BERT everything else."""

    def spelled(index: int) -> str:
        text = tokens[index]
        if types[index] != TokenType.NORMAL:
            return text
        return text.removeprefix(SPACE) if text.startswith(SPACE) else PREFIX + text

    kept = [index for index, kind in enumerate(types) if kind != TokenType.UNUSED]
    unknown = header.get("tokenizer.ggml.unknown_token_id")
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": header.get("tokenizer.ggml.normalizer.strip_accents"),
            "lowercase": header.get("tokenizer.ggml.normalizer.lowercase", True),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": PREFIX, "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": None if unknown is None else tokens[unknown],
            "continuing_subword_prefix": PREFIX,
            "max_input_chars_per_word": 100,
            "vocab": {spelled(index): index for index in kept},
        },
    }


FAMILIES = {
    "gpt2": byte_level_definition,
    "llama": _sentencepiece,
    "gemma4": _gemma4,
    "t5": _unigram,
    "bert": _word_piece,
}


def _merges(header: Header, tokens: list[str], types: list[int]) -> list[str]:
    """Every way to make a piece of two others, the pieces with the highest scores first."""
    scores = header.get("tokenizer.ggml.scores")
    if scores is None:
        raise ModelError(f"{header.path}: tokenizer.ggml.scores is missing; the merges cannot be found")
    normal = {text: index for index, text in enumerate(tokens) if types[index] == TokenType.NORMAL}
    merges = []
    for text in sorted(normal, key=lambda text: -scores[normal[text]]):
        parts = [(text[:at], text[at:]) for at in range(1, len(text))]
        parts = [(left, right) for left, right in parts if left in normal and right in normal]
        merges += [" ".join(pair) for pair in sorted(parts, key=lambda pair: (normal[pair[0]], normal[pair[1]]))]
    return merges


def _post_processor(header: Header, tokens: list[str]) -> dict[str, Any] | None:
    """What puts BOS and EOS around a text; None where nothing is put."""
    ids = dict(zip(("before", "behind"), added_around(header), strict=True))
    ends = {place: index for place, index in ids.items() if index is not None}
    if not ends:
        return None
    special = {name: {"SpecialToken": {"id": tokens[index], "type_id": 0}} for name, index in ends.items()}

    def around(*sequences: dict[str, Any]) -> list[dict[str, Any]]:
        return (
            [special[name] for name in ("before",) if name in ends]
            + [*sequences]
            + [special[name] for name in ("behind",) if name in ends]
        )

    texts = [{"Sequence": {"id": part, "type_id": number}} for number, part in enumerate("AB")]
    return {
        "type": "TemplateProcessing",
        "single": around(texts[0]),
        "pair": around(texts[0]) + around(texts[1]),
        "special_tokens": {
            tokens[index]: {"id": tokens[index], "ids": [index], "tokens": [tokens[index]]} for index in ends.values()
        },
    }


def _tokenizer_config(header: Header, tokens: list[str]) -> dict[str, Any]:
    ids = {ours: special_id(header, theirs) for ours, theirs in NAMES.items()}
    named = {f"{ours}_token": tokens[index] for ours, index in ids.items() if index is not None}
    found = definition_of(header.get("tokenizer.ggml.pre"))
    cleans = found is not None and found[1].clean_spaces
    return {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": cleans, **named}


def _generation_config(header: Header) -> dict[str, Any]:
    ids = {name: special_id(header, name) for name in ("bos", *STOPS)}
    stops = list(dict.fromkeys(ids[name] for name in STOPS if ids[name] is not None))
    found = {"bos_token_id": ids["bos"], "eos_token_id": stops or None}
    return {key: value for key, value in found.items() if value is not None}
