"""What only the whole of a file shows: labels, languages, the dominant format, lengths, personal data."""

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeft.data.check.engine import FileSummary

Problem = tuple[str, int, str]

DOMINANT = 0.9
LABEL_SHARE = 0.9  # of the answers are labels: short and given more than once
IMBALANCE = 20.0
LANGUAGE_CHARS = 40
LANGUAGE_READ = 400
SURE = 0.9
FOREIGN_SHARE = 0.1
LONG_FACTOR = 16


def dataset_findings(summary: "FileSummary", pii: bool) -> Iterator[Problem]:
    """(code, line, detail); line 0 for the file as a whole."""
    yield from _labels(summary)
    yield from _dominant_format(summary)
    yield from _languages(summary)
    yield from _lengths(summary)
    if pii:
        yield from _personal_data(summary)


def _labels(summary: "FileSummary") -> Iterator[Problem]:
    labels = summary.labels
    total = labels.total()
    repeated = sum(n for n in labels.values() if n > 1)
    if total < 10 or total < LABEL_SHARE * summary.n_examples or repeated < LABEL_SHARE * total:
        return
    if len(labels) > total / 3 or summary.n_json > total / 2:
        return
    if len(labels) == 1:
        yield "W713", 0, f"{next(iter(labels))!r}, {total} times"
        return
    common, rare = labels.most_common(1)[0], labels.most_common()[-1]
    if len(labels) > 1 and common[1] / rare[1] >= IMBALANCE:
        yield "W701", 0, f"{common[0]!r} {common[1]} times, {rare[0]!r} {rare[1]} times"
    spelled: dict[str, str] = {}
    for label, n in labels.most_common():
        plain = " ".join(label.lower().replace("_", " ").replace("-", " ").split()).rstrip(".")
        if plain in spelled:
            yield "W709", summary.label_lines.get(label, 0), f"{label!r} and {spelled[plain]!r}"
        elif n == 1:
            yield "W702", summary.label_lines.get(label, 0), repr(label)
        spelled.setdefault(plain, label)


def _dominant_format(summary: "FileSummary") -> Iterator[Problem]:
    """Lines that are not JSON where nearly all are, or are where nearly none is."""
    n_answers = sum(n for bits, n in summary.answer_chars.items() if bits)
    if n_answers < 20:
        return
    share = summary.n_json / n_answers
    if DOMINANT <= share < 1:
        for line in summary.not_json:
            yield "W704", line, f"not JSON, as {share:.1%} of the answers are"
    elif 0 < share <= 1 - DOMINANT:
        for line in summary.is_json:
            yield "W704", line, f"JSON, as only {share:.1%} of the answers are"


def _languages(summary: "FileSummary") -> Iterator[Problem]:
    long_enough = [(line, text) for line, text in summary.sample if len(text) >= LANGUAGE_CHARS]
    if not long_enough:
        return
    identifier = _identifier()
    found = [(line, *identifier.classify(text[:LANGUAGE_READ])) for line, text in long_enough]
    summary.languages = Counter(language for _, language, _ in found)
    main, n_main = summary.languages.most_common(1)[0]
    if len(found) < 20 or n_main < (1 - FOREIGN_SHARE) * len(found):
        return
    for line, language, sure in found:
        if language != main and sure > SURE:
            yield "W703", line, f"{language}, where {n_main / len(found):.0%} are {main}"


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _lengths(summary: "FileSummary") -> Iterator[Problem]:
    lengths = summary.answer_chars
    total = lengths.total()
    if total < 50:
        return
    passed = 0
    for bits in sorted(lengths):
        passed += lengths[bits]
        if passed >= total / 2:
            break
    typical = max(64, 2**bits)
    far = sum(n for b, n in lengths.items() if 2 ** (b - 1) > typical * LONG_FACTOR)
    if 0 < far <= total / 100:
        yield "W711", 0, f"{far} answers longer than {typical * LONG_FACTOR} characters, half are below {typical}"


def _personal_data(summary: "FileSummary") -> Iterator[Problem]:
    from edgeft.data.pii import find_personal_data

    for line, text in summary.personal:
        kinds = sorted({found.kind for found in find_personal_data(text) if found.kind not in ("DATE_TIME", "URL")})
        if kinds:
            yield "W708", line, ", ".join(kinds)
