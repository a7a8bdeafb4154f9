"""Which of llama.cpp's named pre-tokenizers splits text as a byte-level `tokenizer.json` does.

llama.cpp holds the splitting rules in its code and knows them by name (`llm_tokenizer_bpe` in
`src/llama-vocab.cpp`); transformers writes the rule itself. So a rule is recognised by its definition, spelled
one way, and an unknown one is refused rather than guessed. Rules of llama.cpp that do not split as the tokenizer
they were made for (`tiny_aya`, `youtu`: no split between lower and upper case) and rules of tokenizers that are
code, not definitions (`kimi-k2`, `afmoe`), have no row; nor has `superbpe`, which groups digits otherwise.
"""

import json
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from edgeft.errors import ModelError
from edgeft.export.gguf.tokenizers.base import Limit, pre_tokenizers

Step = tuple[Any, ...]


def _has_other_capital(text: str) -> bool:
    return any(unicodedata.category(one) in ("Lu", "Lt") for one in text if one > "\x7f")


def _has_mark(text: str) -> bool:
    return any(unicodedata.category(one).startswith("M") for one in text if one > "\x7f")


CASE = Limit("its rule knows capital letters only in ASCII", _has_other_capital)
MARKS = Limit("its rule splits a letter from the marks on it", _has_mark)


@dataclass(frozen=True)
class PreTokenizer:
    """One name llama.cpp knows, and what else it switches on by that name."""

    name: str
    ignore_merges: bool = False
    """A word that is a token is taken as it is, without looking at merges."""
    clean_spaces: bool = False
    """Decoding drops the space before punctuation (`clean_up_tokenization_spaces`)."""
    limits: tuple[Limit, ...] = ()


CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + BLANKS
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = QWEN2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+ENDING|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*ENDING"
    r"|NUMBER| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + BLANKS
)
TEKKEN = _CASED.replace("ENDING", "").replace("NUMBER", r"\p{N}")
GPT_4O = _CASED.replace("ENDING", CONTRACTIONS + "?").replace("NUMBER", r"\p{N}{1,3}")
JAIS2 = LLAMA3.removesuffix(r"\s+(?!\S)|\s+") + (
    "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"|\s{1,2}(?!\S)|\s{1}"
)
SEED_CODER = QWEN2.replace(r"[^\s\p{L}\p{N}]+[\r\n]*", r"[^\s\p{L}\p{N}\r\n]+")
EXAONE_MOE = QWEN2.replace(r"\p{L}+", r"(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+").replace(r"+[\r\n]*", r"+[\r\n/]?")
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
_LETTERS = (
    "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ"
    "-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
_IDEOGRAPHS = r"[一-龥ࠀ-一가-퟿]+"
_JAPANESE = r"[一-龥぀-ゟ゠-ヿ]+"
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|""" + BLANKS
)
_SPARK = _DEEPSEEK3.replace(r"[\r\n]*|\s*[\r\n]+", r"|[\r\n]")

GPT2: Step = ("ByteLevel",)
"""Byte-level with GPT-2's own rule; definitions with another rule end in bytes without one, which is not a step."""
DIGITS: Step = ("Digits", True)
KEEPS_MATCHES = (("Isolated", False), ("Removed", True))


def _split(*patterns: str) -> tuple[Step, ...]:
    return tuple(("Split", pattern) for pattern in patterns)


_WRITTEN: dict[tuple[Step, ...], tuple[PreTokenizer, ...]] = {
    (GPT2,): (PreTokenizer("trillion"), PreTokenizer("gpt-2", clean_spaces=True)),
    (DIGITS, GPT2): (PreTokenizer("smollm"), PreTokenizer("starcoder", clean_spaces=True)),
    _split(LLAMA3): (
        PreTokenizer("dbrx", clean_spaces=True),
        PreTokenizer("llama-bpe", ignore_merges=True, clean_spaces=True),
    ),
    _split(QWEN2): (PreTokenizer("qwen2"), PreTokenizer("stablelm2", clean_spaces=True)),
    _split(QWEN35): (PreTokenizer("qwen35"),),
    _split(TEKKEN): (PreTokenizer("tekken", ignore_merges=True, limits=(CASE, MARKS)),),
    # Its other name, `gpt-4o`, splits letters from their marks: a fault in every Indic script.
    _split(GPT_4O): (PreTokenizer("granite-embed-multi-97m", ignore_merges=True, limits=(CASE,)),),
    _split(JAIS2): (PreTokenizer("jais-2", clean_spaces=True),),
    _split(SEED_CODER): (PreTokenizer("seed-coder"),),
    _split(EXAONE_MOE): (PreTokenizer("exaone-moe", clean_spaces=True),),
    _split(QWEN2.removeprefix(CONTRACTIONS + "|")): (PreTokenizer("ufakzeka"),),
    _split(BLOOM): (PreTokenizer("poro-chat"), PreTokenizer("bloom", clean_spaces=True)),
    (*_split(BLOOM), DIGITS): (PreTokenizer("viking"),),
    _split(r"[^\n]+|[\n]+", QWEN2): (PreTokenizer("laguna"),),
    _split(r"\p{N}{1,3}", LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}+")): (
        PreTokenizer("minicpm5", ignore_merges=True, clean_spaces=True),
    ),
    _split(r"\p{N}{1,3}", _JAPANESE, _DEEPSEEK3): (PreTokenizer("deepseek-v3"),),
    (*_split(r"\p{N}{1,3}", _JAPANESE, _SPARK), DIGITS): (PreTokenizer("spark2_5"),),
    (*_split(r"[\r\n]", _LETTERS, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _IDEOGRAPHS), DIGITS): (
        PreTokenizer("deepseek-llm"),
    ),
    (*_split(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _IDEOGRAPHS), DIGITS): (PreTokenizer("deepseek-coder"),),
    (("Punctuation", "Contiguous"), GPT2, ("Digits", False), *_split("[0-9][0-9][0-9]")): (
        PreTokenizer("falcon", clean_spaces=True),
    ),
}
"""By definition; each row's names split alike and differ in what else they switch on."""

OTHER_NAMES = {
    "llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2", "jina-v2-code": "gpt-2",
}  # fmt: skip
"""What llama.cpp calls the same rule in other files."""

WORDS = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BYTES = WORDS | {"use_regex": False}
"""GPT-2's rule with its bytes, and bytes alone, as a `tokenizer.json` writes them."""


def find_pre_tokenizer(tokenizer: dict[str, Any], *, clean_spaces: bool = False) -> PreTokenizer:
    """llama.cpp's pre-tokenizer for the splitting rule of a byte-level `tokenizer.json`.

    Of several names that split alike, the one that treats merges as the tokenizer does, then the one that cleans
    spaces like it. Raises ModelError, showing the definition, when llama.cpp has no rule known to split the same.
    """
    known = {_canonical_steps(steps): names for steps, names in _WRITTEN.items()}
    names = known.get(_canonical_steps(_steps(tokenizer)))
    if names is None:
        definition = json.dumps(tokenizer.get("pre_tokenizer"), ensure_ascii=False)
        raise ModelError(
            f"tokenizer.json: the pre-tokenizer {definition} is not known to split as one of llama.cpp's "
            f"({', '.join(one.name for row in known.values() for one in row)})"
        )
    ignores = ignores_merges(tokenizer)
    return min(names, key=lambda one: (one.ignore_merges != ignores, one.clean_spaces != clean_spaces))


def definition_of(name: str) -> tuple[list[dict[str, Any]], PreTokenizer] | None:
    """The steps of a `tokenizer.json` that split as llama.cpp's pre-tokenizer `name`, and what else that switches
    on; None for a name without a row here."""
    name = OTHER_NAMES.get(name, name)
    rows = [(steps, one) for steps, names in _WRITTEN.items() for one in names if one.name == name]
    if not rows:
        return None
    steps, found = rows[0]
    return [_written(*step) for step in steps] + ([] if GPT2 in steps else [BYTES]), found


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


def _written(kind: str, value: Any = None) -> dict[str, Any]:
    """A step as a `tokenizer.json` has it."""
    if kind == "Split":
        return {"type": kind, "pattern": {"Regex": value}, "behavior": "Isolated", "invert": False}
    if kind == "Digits":
        return {"type": kind, "individual_digits": value}
    return {"type": kind, "behavior": value} if kind == "Punctuation" else WORDS


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
