"""Where llama.cpp, whatever a file says, reads a vocabulary otherwise than the tokenizer it came from.

Two behaviours are fixed in its code (`src/llama-vocab.cpp`). Tokens are taken for control tokens by their text, and
some then end an answer. And a byte that the vocabulary has no token for is dropped after the merges; `tokenizers`
drops it before, so that its neighbours can still join.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from edgeft.runtime.gguf_format import Header
from edgeft.runtime.splitting import Limit, definition_of

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""Of `llama_token_type` in llama.h."""

CONTROL_LOOKING = frozenset((
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
    "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>",
    "<|code_prefix|>", "<|prefix|>",
    "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>",
    "<|code_suffix|>", "<|suffix|>",
    "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>",
    "<|code_middle|>", "<|middle|>",
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]",
    "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>",
    "<|channel|>", "<|message|>", "<|start|>", "<|constrain|>",
))  # fmt: skip
"""Texts by which llama.cpp finds special tokens, whatever type the file gives them."""

STOP_KEYS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))


class Ordinary(NamedTuple):
    """Tokens that llama.cpp takes for special ones and the file does not, by text."""

    in_texts: Mapping[str, int]
    """Entries of the vocabulary that only merges make: llama.cpp cuts them out of a text before that."""
    at_ends: frozenset[int]
    """These and added tokens that nothing in the file names as an end: they are part of an answer."""


def ordinary_tokens(header: Header) -> Ordinary:
    """What the file's own types say of the tokens that look like control tokens.

    A file without any control token is of a time when types were not written: there llama.cpp's guess stands. So it
    does for a token that the chat template writes or a key names as an end.
    """
    types = header.get("tokenizer.ggml.token_type")
    if not types or CONTROL not in types:
        return Ordinary({}, frozenset())
    template = header.get("tokenizer.chat_template", "")
    named = {header.get(key) for key in STOP_KEYS}
    looking = {text.encode(): text for text in CONTROL_LOOKING}
    found = {looking[text]: token for token, text in enumerate(header.get("tokenizer.ggml.tokens")) if text in looking}
    free = {text: token for text, token in found.items() if token not in named and text not in template}
    in_texts = {text: token for text, token in free.items() if types[token] == NORMAL}
    return Ordinary(in_texts, frozenset(token for token in free.values() if types[token] in (NORMAL, USER_DEFINED)))


def file_limits(header: Header, ordinary: Ordinary) -> tuple[Limit, ...]:
    """The limits of llama.cpp for the vocabulary of a file."""
    rule: tuple[Limit, ...] = ()
    missing: Sequence[int] = ()
    if header.get("tokenizer.ggml.model") == "gpt2":
        known = definition_of(header.get("tokenizer.ggml.pre"))
        rule = known[1].limits if known else ()
        missing = missing_bytes({text.decode(errors="replace") for text in header.get("tokenizer.ggml.tokens")})
    return (*rule, *byte_limits(missing), *text_limits(ordinary.in_texts))


def missing_bytes(tokens: Collection[str]) -> list[int]:
    """The bytes that a byte-level vocabulary has no token for."""
    return [byte for byte, symbol in byte_symbols().items() if symbol not in tokens]


def byte_symbols() -> dict[int, str]:
    """The character by which byte-level vocabularies spell each byte (`bytes_to_unicode` of GPT-2)."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {byte: chr(byte) for byte in printed} | {byte: chr(256 + place) for place, byte in enumerate(others)}


def byte_limits(missing: Collection[int]) -> tuple[Limit, ...]:
    """The limit of a vocabulary without these bytes."""
    if not missing:
        return ()
    dropped = bytes(missing)

    def concerns(text: str) -> bool:
        encoded = text.encode(errors="replace")
        return len(encoded.translate(None, dropped)) != len(encoded)

    shown = " ".join(f"{byte:02x}" for byte in sorted(missing))
    why = f"the vocabulary has no token for the bytes {shown}, and it does not join what is beside them"
    return (Limit(why, concerns),)


def text_limits(texts: Collection[str]) -> tuple[Limit, ...]:
    """The limit of a vocabulary with ordinary tokens of these texts."""
    if not texts:
        return ()
    held = tuple(sorted(texts))
    shown = ", ".join(map(repr, held))
    why = f"it takes the ordinary token {shown} for a control token"
    return (Limit(why, lambda text: any(one in text for one in held)),)
