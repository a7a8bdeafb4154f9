"""The `tokenizer.*` keys of a GGUF file, checked against what `src/llama-vocab.cpp` does with them."""

import math
from array import array
from typing import Any, NoReturn

from edgeft.errors import ModelError
from edgeft.runtime.gguf_format import BOOL, STRING, UINT32, Header
from edgeft.runtime.splitting import ADDS_BOS

PREFIX = "tokenizer.ggml."
# kind -> the BOS, EOS and separator llama.cpp takes where the file names none (and the vocabulary is large enough)
DEFAULT_IDS: dict[str, dict[str, int | None]] = {
    "llama": {"bos": 1, "eos": 2, "unknown": 0},
    "gpt2": {"bos": 11, "eos": 11},
    "bert": {"bos": 101, "seperator": 102, "unknown": 100, "padding": 0, "mask": 103},
    "t5": {"eos": 1, "unknown": 2, "padding": 0},
}
ADDED_BY_DEFAULT = {"llama": ("bos",), "bert": ("bos", "seperator"), "t5": ("eos",)}
ADDED_ALWAYS = {"bert": ("bos", "seperator")}
"""What no flag switches off."""
FLAGS = {"add_bos_token": "bos", "add_eos_token": "eos", "add_sep_token": "seperator"}
"""Flag -> the special token it puts around a text; without that token llama.cpp ends the process."""
N_TOKEN_TYPES = 7


def check_vocabulary(header: Header) -> None:
    """Raise ModelError where the vocabulary is missing, inconsistent, or would end the process."""
    kind = header.get("tokenizer.ggml.model")
    if not isinstance(kind, str):
        refuse(header, "model", "is missing or no string: the file has no vocabulary")
    entry = header.values.get(f"{PREFIX}tokens")
    if entry is None or entry.item_kind != STRING or not entry.value:
        refuse(header, "tokens", "is missing, empty or no array of strings: the file has no vocabulary")
    tokens = entry.value
    _check_distinct(header, tokens)
    _check_numbers(header, "scores", "fi", len(tokens))
    _check_numbers(header, "token_type", "i", len(tokens))
    types = header.get(f"{PREFIX}token_type")
    if types and not (min(types) >= 0 and max(types) < N_TOKEN_TYPES):
        refuse(header, "token_type", f"holds a type outside 0 to {N_TOKEN_TYPES - 1}")
    scores = header.get(f"{PREFIX}scores")
    if scores and not math.isfinite(sum(scores)):
        refuse(header, "scores", "holds a number that is not finite")
    if kind == "gpt2" and header.get(f"{PREFIX}pre") != "kimi-k2":
        merges = header.values.get(f"{PREFIX}merges")
        if merges is None or merges.item_kind != STRING:
            refuse(header, "merges", "is missing or no array of strings")
    _check_special(header, kind, len(tokens))
    template = header.values.get("tokenizer.chat_template")
    if template is not None and template.kind != STRING:
        raise ModelError(f"{header.path}: tokenizer.chat_template (byte {template.at}) is no string; export it again")


def special_id(header: Header, name: str) -> int | None:
    """The id of `bos`, `eos`, `unknown`, …: the file's, or what llama.cpp takes where it names none. A byte-level file
    that names no BOS or EOS has none: 11, which llama.cpp takes there, is GPT-2's full stop."""
    kind, n_tokens = str(header.get("tokenizer.ggml.model")), len(header.get(f"{PREFIX}tokens"))
    if kind == "gpt2":
        token: int | None = header.get(f"{PREFIX}{name}_token_id")
        return token
    found: int | None = _special_id(header, kind, name, n_tokens)
    return found


def added_around(header: Header) -> tuple[int | None, int | None]:
    """The ids that llama.cpp puts before and behind a text, where it puts one."""
    kind = str(header.get("tokenizer.ggml.model"))
    by_default = ("bos",) if header.get(f"{PREFIX}pre") in ADDS_BOS else ADDED_BY_DEFAULT.get(kind, ())
    always = ADDED_ALWAYS.get(kind)

    def adds(name: str) -> bool:
        return name in always if always else bool(header.get(f"{PREFIX}add_{name}_token", name in by_default))

    ends = ("seperator",) if always else ("eos",)
    before = special_id(header, "bos") if adds("bos") else None
    return before, next((special_id(header, name) for name in ends if adds(name)), None)


def refuse(header: Header, key: str, why: str) -> NoReturn:
    """Raise ModelError about `tokenizer.ggml.<key>`."""
    entry = header.values.get(f"{PREFIX}{key}")
    at = "" if entry is None else f" (byte {entry.at})"
    raise ModelError(f"{header.path}: {PREFIX}{key}{at} {why}; export or copy it again")


def _check_distinct(header: Header, tokens: list[bytes]) -> None:
    """llama.cpp ends the process when two tokens have the same text; empty ones get a name of their own."""
    if len(set(tokens)) + max(0, tokens.count(b"") - 1) == len(tokens):
        return
    seen: set[bytes] = set()
    for index, token in enumerate(tokens):
        if token and token in seen:
            text = token.decode(errors="replace")
            refuse(header, "tokens", f"is damaged: two tokens have the same text {text!r}, the second is {index}")
        seen.add(token)


def _check_numbers(header: Header, key: str, codes: str, n_tokens: int) -> None:
    entry = header.values.get(f"{PREFIX}{key}")
    if entry is None:
        return
    if not isinstance(entry.value, array) or entry.value.typecode not in codes:
        refuse(header, key, f"is {entry.type_name}")
    if len(entry.value) < n_tokens:
        refuse(header, key, f"has {len(entry.value)} entries for {n_tokens} tokens")


def _check_special(header: Header, kind: str, n_tokens: int) -> None:
    for key, entry in header.values.items():
        if not (key.startswith(PREFIX) and key.endswith("_token_id")):
            continue
        name = key.removeprefix(PREFIX)
        if entry.kind != UINT32:
            refuse(header, name, f"is {entry.type_name}, not uint32")
        if entry.value >= n_tokens:
            refuse(header, name, f"is {entry.value}, outside the vocabulary of {n_tokens} tokens")
    for flag, token in FLAGS.items():
        given = header.values.get(f"{PREFIX}{flag}")
        if given is not None and given.kind != BOOL:
            refuse(header, flag, f"is {given.type_name}, not bool")
        added = token in ADDED_BY_DEFAULT.get(kind, ()) if given is None else given.value
        if added and _special_id(header, kind, token, n_tokens) is None:
            refuse(header, f"{token}_token_id", "is missing, but the file asks to add it to every text")


def _special_id(header: Header, kind: str, token: str, n_tokens: int) -> Any:
    default = DEFAULT_IDS.get(kind, {}).get(token)
    fallback = default if default is not None and default < n_tokens else None
    return header.get(f"{PREFIX}{token}_token_id", fallback)
