"""Which of llama.cpp's named pre-tokenizers splits text as a byte-level `tokenizer.json` does.

A rule is recognised by its definition, spelled one way, and an unknown one is refused rather than guessed. The rules:
`edgeft.runtime.splitting`.
"""

import json
import re
from typing import Any

from edgeft.errors import ModelError
from edgeft.export.gguf.tokenizers.base import pre_tokenizers
from edgeft.runtime.splitting import CONTRACTIONS, DIGITS, GPT2, RULES, PreTokenizer, Step

KEEPS_MATCHES = (("Isolated", False), ("Removed", True))


def find_pre_tokenizer(tokenizer: dict[str, Any], *, clean_spaces: bool = False) -> PreTokenizer:
    """llama.cpp's pre-tokenizer for the splitting rule of a byte-level `tokenizer.json`.

    Of several names that split alike, the one that treats merges as the tokenizer does, then the one that cleans
    spaces like it. Raises ModelError, showing the definition, when llama.cpp has no rule known to split the same.
    """
    known = {_canonical_steps(steps): names for steps, names in RULES.items()}
    names = known.get(_canonical_steps(_steps(tokenizer)))
    if names is None:
        definition = json.dumps(tokenizer.get("pre_tokenizer"), ensure_ascii=False)
        raise ModelError(
            f"tokenizer.json: the pre-tokenizer {definition} is not known to split as one of llama.cpp's "
            f"({', '.join(one.name for row in known.values() for one in row)})"
        )
    ignores = ignores_merges(tokenizer)
    return min(names, key=lambda one: (one.ignore_merges != ignores, one.clean_spaces != clean_spaces))


def ignores_merges(tokenizer: dict[str, Any]) -> bool:
    """Whether the tokenizer takes a word that is a token as it is."""
    return bool(tokenizer["model"].get("ignore_merges", False))


def is_gpt2_rule(tokenizer: dict[str, Any]) -> bool:
    """Whether the tokenizer splits by GPT-2's rule and nothing else."""
    return _steps(tokenizer) == (GPT2,)


def _steps(tokenizer: dict[str, Any]) -> tuple[Step, ...]:
    """The definition with only what changes the splits."""
    return tuple(step for part in pre_tokenizers(tokenizer) if (step := _step(part)) is not None)


def _step(part: dict[str, Any]) -> Step | None:
    """One part of the definition; None for bytes without a rule."""
    kind = part["type"]
    if kind == "ByteLevel" and not part.get("add_prefix_space", True):
        return GPT2 if part.get("use_regex", True) else None
    if kind == "Digits":
        return (kind, part.get("individual_digits", False))
    if kind == "Punctuation":
        return (kind, part.get("behavior", "Isolated"))
    if kind == "Split":
        pattern = part["pattern"].get("Regex")
        # "Everything between the matches goes" keeps the matches, and these rules match everything.
        if pattern is not None and (part["behavior"], part.get("invert", False)) in KEEPS_MATCHES:
            return (kind, pattern)
    return (kind, json.dumps(part, sort_keys=True))


def _canonical_steps(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    digits = {r"\p{N}": DIGITS, r"\p{N}+": ("Digits", False)}
    spelled = [(kind, _canonical(value[0])) if kind == "Split" else (kind, *value) for kind, *value in steps]
    return tuple(digits.get(step[1], step) if step[0] == "Split" else step for step in spelled)


CLASS = re.compile(r"(\[(?:\\.|[^\]\\])*\])")
SPELLINGS = (
    (re.compile(r"'\(\?i:\[sdmt\]\|ll\|ve\|re\)"), CONTRACTIONS),
    (re.compile(r"\(\?i:'s\|'d\|'m\|'t\|'ll\|'ve\|'re\)"), CONTRACTIONS),
    (
        re.compile(r"\(\?:'\[sS\]\|'\[tT\]\|'\[rR\]\[eE\]\|'\[vV\]\[eE\]\|'\[mM\]\|'\[lL\]\[lL\]\|'\[dD\]\)"),
        CONTRACTIONS,
    ),
    (re.compile(r"(?<=[?+*}])\+"), ""),  # possessive: what follows never matches what was taken
    (re.compile(r"\{1\}"), ""),
    (re.compile(r"(?<=\\s\*)\[\\n\\r\](?=\||$)"), r"[\\n\\r]+"),  # the first \s* takes all but the last line break
    (re.compile(r"(?<=\|)\\s$"), r"\\s+"),
)
"""Ways of writing that split alike in the rules above, each with the one they are compared in."""


def _canonical(pattern: str) -> str:
    """The pattern in one spelling: escapes for line breaks, sorted classes, no possessive quantifiers."""
    for spelling, canonical in SPELLINGS[:3]:
        pattern = spelling.sub(canonical, pattern)
    pattern = pattern.replace("\r", r"\r").replace("\n", r"\n")
    parts = CLASS.split(pattern)
    for at, part in enumerate(parts):
        if at % 2:
            parts[at] = _sorted_class(part)
    pattern = "".join(parts)
    for spelling, canonical in SPELLINGS[3:]:
        pattern = spelling.sub(canonical, pattern)
    return pattern


def _sorted_class(text: str) -> str:
    sign = "^" if text.startswith("[^") else ""
    items = re.findall(r"\\p\{\w+\}|\\.|[^\\]-[^\\]|.", text[1 + len(sign) : -1], re.DOTALL)
    return f"[{sign}{''.join(sorted(items))}]"
