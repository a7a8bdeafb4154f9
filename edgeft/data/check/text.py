"""What is wrong with the text of one example. Cheap tests on the raw bytes decide which costly ones run."""

import re
from collections.abc import Callable, Iterator

Problem = tuple[str, str]

SPECIAL = re.compile(
    r"<\|[a-zA-Z_][\w\-]{0,40}\|>|<\uff5c[^>\uff5c]{1,40}\uff5c>|</?s>|\[/?INST\]|<</?SYS>>|"
    r"<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>|<extra_id_\d+>|\[(?:CLS|SEP|PAD|MASK)\]"
)
BRACKETED = re.compile(rb"\[(?:/?INST|CLS|SEP|PAD|MASK)\]")
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
# Every phrase holds one of these: few are looked for in most answers.
REFUSAL_HINTS = ("i can", "i'm ", "i am ", "i won't", "i must ")
BOILERPLATE_HINTS = (
    "as an ai ",
    "as a lang",
    "my ",
    "i hope this",
    "else i can",
    "feel free",
    "personal opin",
    "as of my",
)
START_CHARS = 200
REPEATED_WORDS = 60


def text_problems(raw: bytes, texts: list[str], answer: str) -> list[Problem]:
    """(code, detail) for the turns `texts` and the last `answer`; `raw` is the JSON line they come from."""
    found: list[Problem] = []
    if b"<" in raw or (raw.count(b"[") > 1 and BRACKETED.search(raw)):  # the first [ opens the messages
        found += _first(SPECIAL, "E403", texts, lambda token: token[:40])
    is_ascii = raw.isascii()
    escaped = b"\\" in raw and (b"\\u00" in raw or b"\\b" in raw or b"\\f" in raw)
    if escaped or b"\x7f" in raw or (not is_ascii and b"\xc2" in raw):
        found += _first(CONTROL, "E402", texts, lambda letter: f"U+{ord(letter):04X}")
    if not is_ascii or b"\\u" in raw:
        found += _beyond_ascii(texts)
    if answer:
        found += _answer_problems(answer)
    return found


def _first(pattern: re.Pattern[str], code: str, texts: list[str], shown: Callable[[str], str]) -> list[Problem]:
    for text in texts:
        if found := pattern.search(text):
            return [(code, shown(found.group()))]
    return []


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


def _answer_problems(answer: str) -> list[Problem]:
    found = []
    if answer[0].isspace() or answer[-1].isspace():
        found.append(("W406", ""))
    if ("{{" in answer or "[" in answer or "<" in answer) and (mark := PLACEHOLDER.search(answer)):
        found.append(("W407", mark.group()[:40]))
    if "```" in answer:
        if answer.count("```") % 2:
            found.append(("W410", ""))
    elif ("<" in answer or "&" in answer) and (mark := MARKUP.search(answer)):
        found.append(("W408", mark.group()[:40]))
    start = answer[:START_CHARS].lower()
    if "’" in start:
        start = start.replace("’", "'")
    end = answer[-START_CHARS:].lower() if len(answer) > START_CHARS else ""
    for code, hints, phrases, where in (
        ("W706", REFUSAL_HINTS, REFUSALS, start),
        ("W707", BOILERPLATE_HINTS, BOILERPLATE, start + "\n" + end),
    ):
        for hint in hints:
            if hint in where:
                found += [(code, phrase) for phrase in phrases if phrase in where][:1]
                break
    if len(answer) >= 2 * REPEATED_WORDS - 1 and (repeated := _repeated(answer)):
        found.append(("W409", repeated))
    return found


def _repeated(answer: str) -> str:
    words = answer.lower().split()
    different = len(set(words))
    return f"{different} different words of {len(words)}" if REPEATED_WORDS <= len(words) > 8 * different else ""
