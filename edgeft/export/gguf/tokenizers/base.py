"""What every family of tokenizers needs: the steps of its definition, the text and type of every id."""

import re
from typing import Any

from gguf import TokenType

from edgeft.errors import ModelError
from edgeft.export.folder import ModelFolder

SPACE = "▁"
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


def model_type(tokenizer: dict[str, Any]) -> str:
    """`BPE`, `Unigram`, `WordPiece`, …; older files do not say it of BPE."""
    return str(tokenizer["model"].get("type", "BPE"))


def normalizers(tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of the normalizer, sequences laid flat."""
    return _flat(tokenizer.get("normalizer"), "normalizers")


def pre_tokenizers(tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of the pre-tokenizer, sequences laid flat."""
    return _flat(tokenizer.get("pre_tokenizer"), "pretokenizers")


def _flat(step: dict[str, Any] | None, parts: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    return [inner for part in step[parts] for inner in _flat(part, parts)]


def added_tokens(tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    """The tokens cut out of a text before anything else: `id`, `content`, `special`, `lstrip`, `rstrip`, …"""
    added: list[dict[str, Any]] = tokenizer.get("added_tokens", [])
    return added


def token_texts(folder: ModelFolder, n_vocab: int) -> list[str]:
    """The text of every id; rows of the embedding without a token get a name of their own.

    Raises ModelError when a token has no row, or two have the same text, on which llama.cpp ends the process.
    """
    ids = folder.token_ids
    highest = max(ids.values(), default=-1)
    if highest < 0:
        raise ModelError(f"{folder.path / 'tokenizer.json'}: it has no tokens; save the tokenizer again")
    by_id = {token: text for text, token in ids.items()}
    if highest >= n_vocab:
        raise ModelError(
            f"{folder.path}: token id {highest} ({by_id[highest]!r}) has no row in the embedding of {n_vocab} rows; "
            "resize the model's embedding or save the tokenizer it was trained with"
        )
    return [by_id.get(token) or f"[PAD{token}]" for token in range(n_vocab)]


def token_types(folder: ModelFolder, texts: list[str]) -> list[int]:
    """The `TokenType` of every id.

    CONTROL and USER_DEFINED tokens (special and other added ones) are what llama.cpp finds in a text before it
    splits it, so a token is neither unless the tokenizer added it.
    """
    tokenizer = folder.tokenizer
    known = set(folder.token_ids.values())
    types = [TokenType.NORMAL if token in known else TokenType.UNUSED for token in range(len(texts))]
    if tokenizer["model"].get("byte_fallback", False):
        for token, text in enumerate(texts):
            if len(text) == 6 and BYTE_TOKEN.fullmatch(text):
                types[token] = TokenType.BYTE
    unknown = unknown_id(folder)
    for added in added_tokens(tokenizer):
        token = added["id"]
        types[token] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        if token == unknown and model_type(tokenizer) != "WordPiece":
            types[token] = TokenType.UNKNOWN
    return [int(kind) for kind in types]


def unknown_id(folder: ModelFolder) -> int | None:
    """Id of the token for what the vocabulary cannot write."""
    model = folder.tokenizer["model"]
    if model.get("unk_id") is not None:
        token: int = model["unk_id"]
        return token
    text = model.get("unk_token") or folder.special_text("unk")
    return None if text is None else folder.token_ids.get(text)


def merge_parts(merge: str | list[str]) -> list[str]:
    """The two parts of a merge, which older files write with a space between."""
    return merge.split(" ") if isinstance(merge, str) else merge
