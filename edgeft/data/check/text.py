"""What is wrong with the text of one example. Cheap tests on the raw bytes decide which costly ones run."""

import re
from collections.abc import Iterator

Problem = tuple[str, str]

SPECIAL = re.compile(
    r"<\|[a-zA-Z_][\w\-]{0,40}\|>|<\uff5c[^>\uff5c]{1,40}\uff5c>|</?s>|\[/?INST\]|<</?SYS>>|"
    r"<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>|<extra_id_\d+>|\[(?:CLS|SEP|PAD|MASK)\]"
)
BRACKETED = (b"[INST]", b"[/INST]", b"[CLS]", b"[SEP]", b"[PAD]", b"[MASK]")
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
INVISIBLE = re.compile("[\u00ad\u200b\u2028\u2029\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff\U000e0001-\U000e007f]")
SURROGATE = re.compile("[\ud800-\udfff]")
PLACEHOLDER = re.compile(
    r"\{\{\s*[\w.\- ]{1,40}\}\}|\[(?:[Ii]nsert|INSERT|[Yy]our|YOUR|[Nn]ame of|TODO|TBD)\b[^\]\n]{0,40}\]|"
    r"<(?:INSERT|YOUR)[ _][^>\n]{1,40}>"
)
MARKUP = re.compile(
    r"&(?:amp|lt|gt|quot|nbsp|apos|#\d{2,5}|#x[0-9a-fA-F]{2,5});|"
    r"</?(?:br|p|div|span|strong|em|ul|ol|li|table|tr|td|font|h[1-6]|script|style)(?:\s[^<>]*)?/?>"
)
REFUSALS = (
    "i can't help with", "i cannot help with", "i can't assist", "i cannot assist", "i'm sorry, but i can",
    "i am sorry, but i can",
    "i'm unable to", "i am unable to", "i cannot provide", "i can't provide", "i won't be able to", "i cannot fulfill",
    "i can't fulfill", "i must decline", "i'm not able to", "i am not able to", "i cannot comply", "i can't comply",
)  # fmt: skip
BOILERPLATE = (
    "as an ai language model", "as a language model", "as an ai model", "as an ai assistant", "my knowledge cutoff",
    "my training data", "i hope this helps", "is there anything else i can help", "feel free to ask",
    "i don't have personal opinions", "as of my last update",
)  # fmt: skip
START_CHARS = 200
REPEATED_WORDS = 60


def text_problems(raw: bytes, texts: list[str], answer: str, words: list[str]) -> Iterator[Problem]:
    """(code, detail) for the turns `texts` and the last answer, whose lower-case words are `words`; `raw` is the
    JSON line they come from."""
    if b"<" in raw or (b"[" in raw and any(mark in raw for mark in BRACKETED)):
        for text in texts:
            if found := SPECIAL.search(text):
                yield "E403", found.group()[:40]
                break
    if b"\\u00" in raw or b"\\b" in raw or b"\\f" in raw or b"\x7f" in raw or b"\xc2" in raw:
        for text in texts:
            if found := CONTROL.search(text):
                yield "E402", f"U+{ord(found.group()):04X}"
                break
    if b"\\u" in raw or not raw.isascii():
        yield from _beyond_ascii(texts)
    if answer:
        yield from _answer_problems(answer, words)


def _beyond_ascii(texts: list[str]) -> Iterator[Problem]:
    from ftfy.badness import badness

    joined = "\n".join(text for text in texts if not text.isascii())
    if not joined:
        return
    if "\ufffd" in joined:
        yield "W404", f"{joined.count(chr(0xFFFD))} times"
    if found := INVISIBLE.search(joined):
        yield "W405", f"U+{ord(found.group()):04X}"
    if SURROGATE.search(joined):
        yield "E110", ""
    elif badness(joined) > 0:
        yield "W401", _mojibake_shown(joined)


def _mojibake_shown(text: str) -> str:
    from ftfy import badness

    found = badness.BADNESS_RE.search(text)
    return repr(text[max(0, found.start() - 8) : found.end() + 8]) if found else ""


def _answer_problems(answer: str, words: list[str]) -> Iterator[Problem]:
    if answer[0].isspace() or answer[-1].isspace():
        yield "W406", ""
    if ("{{" in answer or "[" in answer or "<" in answer) and (found := PLACEHOLDER.search(answer)):
        yield "W407", found.group()[:40]
    if ("<" in answer or "&" in answer) and "```" not in answer and (found := MARKUP.search(answer)):
        yield "W408", found.group()[:40]
    if "```" in answer and answer.count("```") % 2:
        yield "W410", ""
    start = answer[:START_CHARS].lower().replace("’", "'")
    for phrase in REFUSALS:
        if phrase in start:
            yield "W706", phrase
            break
    end = answer[-START_CHARS:].lower() if len(answer) > START_CHARS else ""
    for phrase in BOILERPLATE:
        if phrase in start or phrase in end:
            yield "W707", phrase
            break
    if len(words) >= REPEATED_WORDS and len(different := set(words)) * 8 < len(words):
        yield "W409", f"{len(different)} different words of {len(words)}"
