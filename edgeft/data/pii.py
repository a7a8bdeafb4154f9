"""Personal data with a defined form, found by presidio's recognizers (and its validators: Luhn, IBAN mod 97,
public suffixes), with Google's libphonenumber for telephone numbers.

Names and places have no form: they need a trained model. `find_personal_data(..., ner=...)` uses a spaCy
model the user has installed; nothing is downloaded, and public-suffix lists are never fetched.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from edgeft.errors import MissingExtra
from edgeft.extras import extra_needed
from edgeft.machine.silence import no_ipv6_probe

# In the order in which overlapping finds win: the first kinds prove themselves by a checksum or a fixed form.
KINDS = (
    "EMAIL_ADDRESS", "URL", "IP_ADDRESS", "IBAN_CODE", "CREDIT_CARD", "US_SSN", "DATE_TIME", "PHONE_NUMBER",
    "PERSON", "LOCATION",
)  # fmt: skip
FORMS = KINDS[:8]
HINT = re.compile(
    r"@|://|www\.|\d[\d .()/-]{4,}\d|\d{1,4}[./-]\d{1,2}[./-]\d|:[0-9a-fA-F]{0,4}:|\b[A-Za-z]{2}\d{2}[A-Za-z0-9 ]{8}"
)
# Card numbers by ISO/IEC 7812: 12 to 19 digits; 1800 and 2131 are JCB's, 2 to 6 the networks'.
CARD = (
    r"(?<![\w.+-])(?:1800|[2-6]\d{3})(?:[ -]?\d{4}){2}(?:[ -]?\d{1,4}){0,2}(?:\d{1,3})?(?![\w-])|"
    r"(?<![\w.+-])(?:1800|[2-6]\d{3})\d{8,15}(?!\w)|(?<![\w.+-])3\d{3}[ -]\d{6}[ -]\d{4,5}(?!\w)"
)
PHONE = re.compile(
    r"(?<![\w.:/#-])(?:\+|00)?\(?\d{1,5}\)?(?:[ .\-/]{0,2}\(?\d{1,8}\)?){0,7}"
    r"(?:\s?(?:x|ext\.?|#)\s?\d{1,6})?(?![\w]|[.,]\d)"
)
PHONE_CONTEXT = re.compile(
    r"phone|\btel\b|tel\.|telephone|mobile|\bcell|\bfax|\bcall|\bcontact|reach|\btext\b|\bsms\b|whats|\bnumber\b|office|desk|hotline|"
    r"\bdial|\bring\b|messages? to|answering",
    re.IGNORECASE,
)
REGIONS = (
    "US", "GB", "DE", "FR", "ES", "IT", "NL", "BE", "CH", "AT", "DK", "SE", "NO", "FI", "PL", "CZ", "HU", "PT",
    "AU", "NZ", "ZA", "IN", "BR", "JP", "IE",
)  # fmt: skip
CONTEXT_CHARS = 60


@dataclass(frozen=True)
class Found:
    """A stretch of text that is personal data: [start, end) in characters."""

    kind: str
    start: int
    end: int


def may_hold_personal_data(text: str) -> bool:
    """Whether it is worth looking; false only where `find_personal_data` without a model finds nothing."""
    return HINT.search(text) is not None


def find_personal_data(text: str, ner: str | None = None) -> list[Found]:
    """What was found, in order, not overlapping. `ner` names an installed spaCy model for names and places.

    Raises MissingExtra when presidio, or the model, is not installed.
    """
    found: list[Found] = []
    if may_hold_personal_data(text):
        upper = text.upper() if len(text.upper()) == len(text) else text
        for kind, recognizer in _recognizers():
            subject = upper if kind == "IBAN_CODE" else text
            for hit in recognizer.analyze(subject, recognizer.supported_entities, None) or ():
                if kind != "DATE_TIME" or _day_and_month(text[hit.start : hit.end]):
                    found.append(Found(kind, hit.start, hit.end))
        found += _phones(text)
    if ner is not None:
        found += _named(text, ner)
    return _resolved(found)


def _resolved(found: list[Found]) -> list[Found]:
    """Without overlaps: the kind that comes first in KINDS wins, then the longer."""
    kept: list[Found] = []
    for one in sorted(found, key=lambda f: (KINDS.index(f.kind), f.start - f.end)):
        if all(one.end <= other.start or one.start >= other.end for other in kept):
            kept.append(one)
    return sorted(kept, key=lambda f: f.start)


@lru_cache(maxsize=1)
def _recognizers() -> tuple[tuple[str, Any], ...]:
    with _without("torch", "transformers"), no_ipv6_probe(), extra_needed("data"):
        import tldextract
        from presidio_analyzer import Pattern
        from presidio_analyzer import predefined_recognizers as ready

    offline = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)

    class Email(ready.EmailRecognizer):  # type: ignore[misc]
        def validate_result(self, pattern_text: str) -> bool:
            return bool(offline(pattern_text).top_domain_under_public_suffix)

    class Url(ready.UrlRecognizer):  # type: ignore[misc]
        def validate_result(self, pattern_text: str) -> bool:
            host = re.sub(r"^\w+://", "", pattern_text).split("/")[0]
            return bool(offline(host).top_domain_under_public_suffix)

    return (
        ("EMAIL_ADDRESS", Email()),
        ("URL", Url()),
        ("IP_ADDRESS", ready.IpRecognizer()),
        ("IBAN_CODE", ready.IbanRecognizer()),
        ("CREDIT_CARD", ready.CreditCardRecognizer(patterns=[Pattern("ISO/IEC 7812", CARD, 0.3)])),
        ("US_SSN", ready.UsSsnRecognizer()),
        ("DATE_TIME", ready.DateRecognizer()),
    )


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """Import with these packages absent: presidio and spaCy load torch and transformers only because they are
    there (20 s, 500 MB), for recognizers that are not used here."""
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


def _day_and_month(text: str) -> bool:
    """Dates that say which day: two numbers, or a number and the name of a month. `05/2021` is none."""
    numbers = re.findall(r"\d+", text)
    if len(numbers) == 1 or (len(numbers) == 2 and len(numbers[1]) == 4):
        return bool(re.search(r"[A-Za-z]{3}", text)) and len(numbers[0]) <= 2
    return len(numbers) >= 2


def _phones(text: str) -> Iterator[Found]:
    """Stretches of 7 to 15 digits that are a number somewhere, by libphonenumber; local and plain forms, which
    any number looks like, only behind a word that says so."""
    import phonenumbers

    for match in PHONE.finditer(text):
        raw = match.group()
        digits = sum(letter.isdigit() for letter in re.split(r"x|ext|#", raw)[0])
        if not 7 <= digits <= 15:
            continue
        around = text[max(0, match.start() - CONTEXT_CHARS) : match.end() + 12]
        told = PHONE_CONTEXT.search(around) is not None
        shaped = raw.startswith(("+", "00", "(", "0")) or len(re.findall(r"\d+", raw)) >= 3
        if not told and not shaped:
            continue
        if told or any(_valid(phonenumbers, raw, region) for region in REGIONS):
            yield Found("PHONE_NUMBER", match.start(), match.end())


def _valid(phonenumbers: Any, raw: str, region: str) -> bool:
    try:
        return bool(phonenumbers.is_valid_number(phonenumbers.parse(raw, region)))
    except phonenumbers.NumberParseException:
        return False


@lru_cache(maxsize=2)
def _ner(name: str) -> Any:
    with _without("torch", "transformers"):
        try:
            import spacy

            return spacy.load(name, disable=["parser", "lemmatizer"])
        except (ImportError, OSError) as error:
            raise MissingExtra(
                f"the spaCy model {name} is not installed; install it, or leave --ner out (names stay as they are)"
            ) from error


def _named(text: str, ner: str) -> Iterator[Found]:
    kinds = {"PERSON": "PERSON", "PER": "PERSON", "GPE": "LOCATION", "LOC": "LOCATION", "FAC": "LOCATION"}
    for entity in _ner(ner)(text).ents:
        if entity.label_ in kinds:
            yield Found(kinds[entity.label_], entity.start_char, entity.end_char)
