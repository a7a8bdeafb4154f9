"""Metrics of free text: the longest common subsequence of words, and the number an answer ends with."""

import re
from collections.abc import Sequence
from decimal import Decimal

WORD = re.compile(r"\w+")
MARK = "####"
NUMBER = re.compile(r"(?<![\w.])[-−+]?[$€£]?\s?(\d[\d,]*(?:\.\d+)?|\.\d+)")


def rouge_l(prediction: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, in 0..1.

    C.-Y. Lin, "ROUGE: a package for automatic evaluation of summaries" (2004), section 3.1, with β = 1: the common
    subsequence over the words of the reference is recall, over those of the prediction precision. Words are runs of
    letters, digits and underscores in lower case, without stemming. Two texts without words are equal.
    """
    found, wanted = WORD.findall(prediction.lower()), WORD.findall(reference.lower())
    if not found and not wanted:
        return 1.0
    return 2 * common_subsequence(found, wanted) / (len(found) + len(wanted))


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    Bits of one whole number are a column of the table: H. Hyyrö, "Bit-parallel LCS-length computation revisited"
    (2004): V' = (V + (V & M)) | (V & ~M); the zeros in the end are the length.
    """
    places: dict[str, int] = {}
    for position, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << position
    full = (1 << len(a)) - 1
    column = full
    for word in b:
        matches = column & places.get(word, 0)
        column = ((column + matches) | (column - matches)) & full
    return len(a) - column.bit_count()


def final_number(text: str) -> Decimal | None:
    """The number a worked answer ends with: the first behind the last `####` (GSM8K's mark), without one the last
    of the text; None where there is none.

    Commas between digits and a currency sign before them are left out; a percent sign or unit behind the number
    does not count, and an exponent is not read. 42 and 42.0 are one number.
    """
    _, marked, behind = text.rpartition(MARK)
    found = [(match[0], match[1]) for match in NUMBER.finditer(behind if marked else text)]
    if not found:
        return None
    whole, digits = found[0] if marked else found[-1]
    value = Decimal(digits.replace(",", ""))
    return -value if whole.lstrip()[0] in "-−" else value
