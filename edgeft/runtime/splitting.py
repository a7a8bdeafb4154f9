"""How llama.cpp's byte-level tokenizers split a text, by the names it has for the rules, and where it cannot.

llama.cpp holds the splitting rules in its code and knows them by name (`llm_tokenizer_bpe` in
`src/llama-vocab.cpp`); a `tokenizer.json` writes the rule itself. Rules of llama.cpp that do not split as the tokenizer
they were made for (`tiny_aya`, `youtu`: no split between lower and upper case) and rules of tokenizers that are
code, not definitions (`kimi-k2`, `afmoe`), have no row; nor has `superbpe`, which groups digits otherwise.
"""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Step = tuple[Any, ...]


@dataclass(frozen=True)
class Limit:
    """Texts that llama.cpp is known to tokenize otherwise: `why`, and whether one `concerns` a text."""

    why: str
    concerns: Callable[[str], bool]


def _has_other_capital(text: str) -> bool:
    return any(unicodedata.category(one) in ("Lu", "Lt") for one in text if one > "\x7f")


def _has_mark(text: str) -> bool:
    return any(unicodedata.category(one).startswith("M") for one in text if one > "\x7f")


def _has_ideographic_space(text: str) -> bool:
    return "\u3000" in text


CASE = Limit("its rule knows capital letters only in ASCII", _has_other_capital)
MARKS = Limit("its rule splits a letter from the marks on it", _has_mark)
WIDE_SPACE = Limit("its rule does not see the ideographic space as punctuation", _has_ideographic_space)


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
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
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


def _split(*patterns: str) -> tuple[Step, ...]:
    return tuple(("Split", pattern) for pattern in patterns)


RULES: dict[tuple[Step, ...], tuple[PreTokenizer, ...]] = {
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
        PreTokenizer("deepseek-llm", limits=(WIDE_SPACE,)),
    ),
    (*_split(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _IDEOGRAPHS), DIGITS): (PreTokenizer("deepseek-coder"),),
    # What llama.cpp takes where a file names no rule.
    _split(r"[\p{P}\$\+<=>\^~\|]+", GPT2_PATTERN, r"\p{N}+", "[0-9][0-9][0-9]"): (
        PreTokenizer("default", clean_spaces=True),
    ),
    (("Punctuation", "Contiguous"), GPT2, ("Digits", False), *_split("[0-9][0-9][0-9]")): (
        PreTokenizer("falcon", clean_spaces=True),
    ),
}
"""By definition; each row's names split alike and differ in what else they switch on."""

OTHER_NAMES = {
    other: name
    for name, others in {
        "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano glm4 glm5",
        "dbrx": "smaug-bpe chatglm-bpe",
        "qwen2": "deepseek-r1-qwen kormo f2llmv2 hunyuan grok-2 solar-open",
        "stablelm2": "megrez",
        "deepseek-v3": "hunyuan-dense joyai-llm hy_v4",
        "gpt-2": "jina-v2-code phi-2 gigachat mellum modern-bert exaone4 mpt olmo jais jina-es jina-de jina-v2-es "
        "jina-v2-de a.x-4.0 jina-v1-en roberta-bpe",
        "starcoder": "refact codeshell exaone minerva-7b",
        "smollm": "command-r",
        "trillion": "granite-docling",
        "bloom": "gpt3-finnish",
        "gpt-4o": "llama4 kanana2 talkie",
    }.items()
    for other in others.split()
}
"""What llama.cpp calls the same rule in other files."""

READ_ONLY = {"gpt-4o": ("granite-embed-multi-97m", PreTokenizer("gpt-4o", limits=(CASE, MARKS)))}
"""Names of rules that files of other tools have and ours do not, each with one of the same definition."""

ADDS_BOS = frozenset(
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano tekken chameleon".split()
)
"""Rules by whose name llama.cpp puts BOS in front where the file does not say whether to."""

WORDS = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BYTES = WORDS | {"use_regex": False}
"""GPT-2's rule with its bytes, and bytes alone, as a `tokenizer.json` writes them."""


def definition_of(name: str | None) -> tuple[list[dict[str, Any]], PreTokenizer] | None:
    """The steps of a `tokenizer.json` that split as llama.cpp's pre-tokenizer `name` (None or "": the one it takes
    where a file names none), and what else that switches on; None for a name without a row here."""
    name = OTHER_NAMES.get(name, name) if name else "default"
    if name in READ_ONLY:
        alike, found = READ_ONLY[name]
        return (definition_of(alike) or ([], found))[0], found
    rows = [(steps, one) for steps, names in RULES.items() for one in names if one.name == name]
    if not rows:
        return None
    steps, found = rows[0]
    return [written_step(*step) for step in steps] + ([] if GPT2 in steps else [BYTES]), found


def written_step(kind: str, value: Any = None) -> dict[str, Any]:
    """A step as a `tokenizer.json` has it."""
    if kind == "Split":
        return {"type": kind, "pattern": {"Regex": value}, "behavior": "Isolated", "invert": False}
    if kind == "Digits":
        return {"type": kind, "individual_digits": value}
    return {"type": kind, "behavior": value} if kind == "Punctuation" else WORDS
