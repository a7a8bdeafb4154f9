"""A file's keys and vocabulary against those that the model folder asks for."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgeft.parity.finding import Finding
from edgeft.runtime.gguf_format import Header
from edgeft.runtime.header_vocabulary import added_around
from edgeft.runtime.llama_defaults import with_defaults

ARCHITECTURE = "general.architecture"
TOKENIZER = "tokenizer.ggml."
TOKENS, TYPES, MERGES, SCORES = (TOKENIZER + name for name in ("tokens", "token_type", "merges", "scores"))
TEMPLATE = "tokenizer.chat_template"
TYPE_COUNT = f"{TOKENIZER}token_type_count"
FLOAT_PRECISION = 1e-6
NEWLINE = "\n"
CONTEXT = 12
"""Characters shown on either side of the first other character of a template."""

TYPE_NAMES = {1: "normal", 2: "unknown", 3: "control", 4: "user-defined", 5: "unused", 6: "byte"}
"""`llama_token_type` in llama.h."""


def key_findings(header: Header, architecture: str, expected: Mapping[str, Any]) -> Iterator[Finding]:
    """Differences of the keys `<architecture>.…` from `expected`, those that are missing or too many included."""
    if header.architecture != architecture:
        message = f"{ARCHITECTURE} is {header.architecture!r}; config.json's model is llama.cpp's {architecture!r}"
        yield Finding("key", ARCHITECTURE, message)
        return
    written = {key: _plain(value.value) for key, value in header.values.items()}
    found, wanted = (_full(header, architecture, keys) for keys in (written, expected))
    for key in [key for key in wanted if key in expected] + [key for key in wanted if key not in expected]:
        if key in found and _equal(found[key], wanted[key]):
            continue
        if key not in written:
            yield Finding("key", key, f"{key} is missing from the file; by config.json it is {_shown(wanted[key])}")
        else:
            here = _shown(written[key])
            yield Finding("key", key, f"{key} is {here} in the file; by config.json {_shown(wanted[key])}")
    for key in found:
        if key not in wanted:
            yield Finding("key", key, f"{key} is {_shown(found[key])} in the file; config.json asks for no such key")


def vocabulary_findings(header: Header, expected: Mapping[str, Any]) -> Iterator[Finding]:
    """Differences of the tokenizer's keys from `expected`, the chat template last."""
    found = {key: _plain(value.value) for key, value in header.values.items()}
    for name, added in zip(("bos", "eos"), added_around(header), strict=True):
        found.setdefault(f"{TOKENIZER}add_{name}_token", added is not None)
    yield from _tokens(found.get(TOKENS, []), expected[TOKENS])
    yield from _types(found.get(TYPES, []), expected)
    yield from _merges(found.get(MERGES, []), expected.get(MERGES, []))
    yield from _scores(found.get(SCORES, []), expected)
    for key, value in expected.items():
        if key in (TOKENS, TYPES, MERGES, SCORES, TEMPLATE) or _equal(found.get(key), value):
            continue
        here = _shown_id(key, found.get(key), expected[TOKENS]) if key in found else "missing from the file"
        message = f"{key} is {here}; the tokenizer says {_shown_id(key, value, expected[TOKENS])}"
        yield Finding("key", key, message)
    for key in found:
        if key.startswith(TOKENIZER) and key not in expected:
            yield Finding("key", key, f"{key} is {_shown(found[key])} in the file; the tokenizer asks for no such key")
    yield from _template(found.get(TEMPLATE), expected.get(TEMPLATE))


def _full(header: Header, architecture: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    """`keys` of the architecture with llama.cpp's defaults for those left out; others (`tokenizer.…`) where they are
    among what is compared."""
    prefix = f"{architecture}."
    own = {key.removeprefix(prefix): value for key, value in keys.items() if key.startswith(prefix)}
    full = with_defaults(architecture, own, len(header.get(TOKENS) or ()))
    others = {TYPE_COUNT: keys[TYPE_COUNT]} if TYPE_COUNT in keys else {}
    return {f"{prefix}{key}": value for key, value in full.items()} | others


def _tokens(found: list[str], expected: list[str]) -> Iterator[Finding]:
    for token, (here, there) in enumerate(zip(found, expected, strict=False)):
        if here == there:
            continue
        moved = f"; {there!r} has the id {found.index(there)} in the file" if there in found else ""
        yield Finding("token", there, f"token {token} is {here!r} in the file, {there!r} in the tokenizer{moved}")
        return
    if len(found) != len(expected):
        token = min(len(found), len(expected))
        lost = token < len(expected)
        text = (expected if lost else found)[token]
        which = "is missing from the file" if lost else "has no row in the embedding"
        counts = f"{TOKENS}: {len(found)} tokens for an embedding of {len(expected)} rows"
        yield Finding("token", text, f"{counts}: {token} ({text!r}) {which}")


def _types(found: list[int], expected: Mapping[str, Any]) -> Iterator[Finding]:
    for token, (here, there) in enumerate(zip(found, expected[TYPES], strict=False)):
        if here != there:
            text = expected[TOKENS][token]
            names = (TYPE_NAMES.get(kind, str(kind)) for kind in (here, there))
            message = "token {} ({!r}) is {} in the file; by the tokenizer it is {}".format(token, text, *names)
            yield Finding("token", text, message)
            return


def _merges(found: list[str], expected: list[str]) -> Iterator[Finding]:
    for rank in range(max(len(found), len(expected))):
        here, there = (merges[rank] if rank < len(merges) else None for merges in (found, expected))
        if here != there:
            text = (there or here or "").replace(" ", "")
            shown = "missing" if here is None else repr(here)
            wanted = "has no more merges" if there is None else f"has {there!r}"
            yield Finding("token", text, f"merge {rank} is {shown} in the file; the tokenizer {wanted}")
            return


def _scores(found: list[float], expected: Mapping[str, Any]) -> Iterator[Finding]:
    for token, (here, there) in enumerate(zip(found, expected.get(SCORES, []), strict=False)):
        if not _equal(here, there):
            text = expected[TOKENS][token]
            message = f"token {token} ({text!r}) has the score {here:g} in the file, {there:g} in the tokenizer"
            yield Finding("token", text, message)
            return


def _template(found: str | None, expected: str | None) -> Iterator[Finding]:
    if found == expected:
        return
    if found is None or expected is None:
        has, lacks = ("the model folder", "the file") if found is None else ("the file", "the model folder")
        yield Finding("template", TEMPLATE, f"{has} has a chat template, {lacks} has none")
        return
    at = first_difference(found, expected)
    here, there = (repr(text[max(0, at - CONTEXT) : at + CONTEXT]) for text in (found, expected))
    where = f"the chat template differs in line {expected.count(NEWLINE, 0, at) + 1}"
    yield Finding("template", TEMPLATE, f"{where}: {here} in the file, {there} in the folder")


def first_difference(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Where two unequal sequences begin to differ; the length of the shorter where it begins the longer."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _plain(value: Any) -> Any:
    """As Python has it: lists for arrays, text for bytes."""
    if isinstance(value, array):
        return list(value)
    if isinstance(value, list):
        return [item.decode(errors="replace") if isinstance(item, bytes) else item for item in value]
    return value


def _equal(found: Any, expected: Any) -> bool:
    if isinstance(expected, float) or isinstance(found, float):
        both_numbers = isinstance(found, int | float) and isinstance(expected, int | float)
        return both_numbers and bool(np.isclose(found, expected, rtol=FLOAT_PRECISION, atol=0))
    if isinstance(expected, list) and isinstance(found, list):
        return len(found) == len(expected) and all(map(_equal, found, expected))
    return bool(found == expected)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.7g}"
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _shown_id(key: str, value: Any, tokens: list[str]) -> str:
    """An id with the text of its token."""
    if key.endswith("_token_id") and isinstance(value, int) and 0 <= value < len(tokens):
        return f"{value} ({tokens[value]!r})"
    return _shown(value)
