"""Which of llama.cpp's named pre-tokenizers splits text as a `tokenizer.json` does.

llama.cpp holds the splitting rules in its code and knows them by name (`llm_tokenizer_bpe` in
`src/llama-vocab.cpp`); transformers writes the rule itself. So the rule is recognised by its definition, and
an unknown one is refused rather than guessed.
"""

import json
from typing import Any

from edgeft.errors import ModelError

Step = tuple[Any, ...]

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

BYTES, BYTES_AND_WORDS = ("ByteLevel", False, False), ("ByteLevel", False, True)
"""Byte-level without a space put in front; the second also splits by GPT-2's rule."""

KNOWN: dict[tuple[Step, ...], str] = {
    (BYTES_AND_WORDS,): "gpt-2",
    (("Digits", True), BYTES_AND_WORDS): "smollm",
    (("Split", LLAMA3, "Isolated", False), BYTES): "llama-bpe",
    (("Split", QWEN2, "Isolated", False), BYTES): "qwen2",
}

IGNORES_MERGES = {"llama-bpe"}
"""Pre-tokenizers for which llama.cpp takes a word that is a token as it is, without looking at merges."""


def pre_tokenizer_name(tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name for the splitting rule of a `tokenizer.json`.

    Raises ModelError, showing the definition, when llama.cpp has no rule known to split the same.
    """
    definition = tokenizer.get("pre_tokenizer")
    name = KNOWN.get(tuple(_steps(definition)))
    if name is None:
        raise ModelError(
            f"tokenizer.json: the pre-tokenizer {json.dumps(definition, ensure_ascii=False)} is not known to "
            f"split as one of llama.cpp's ({', '.join(KNOWN.values())})"
        )
    if tokenizer["model"].get("ignore_merges", False) and name not in IGNORES_MERGES:
        raise ModelError(f"tokenizer.json: ignore_merges with the pre-tokenizer {name}: llama.cpp has no such mix")
    return name


def _steps(definition: dict[str, Any] | None) -> list[Step]:
    """The definition with only what changes the splits, sequences laid flat."""
    if definition is None:
        return []
    kind = definition["type"]
    if kind == "Sequence":
        return [step for part in definition["pretokenizers"] for step in _steps(part)]
    if kind == "ByteLevel":
        return [(kind, definition.get("add_prefix_space", True), definition.get("use_regex", True))]
    if kind == "Digits":
        return [(kind, definition.get("individual_digits", False))]
    if kind == "Split":
        pattern = definition["pattern"].get("Regex")
        return [(kind, pattern, definition["behavior"], definition.get("invert", False))]
    return [(kind, json.dumps(definition, sort_keys=True))]
