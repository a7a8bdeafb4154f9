"""More training examples out of few: values that are copied from the request are swapped for others.

A tool call copies some of its values from what the user said (an item, a name, a place) and chooses others
from a short list (on or off). A small model shown each copied value a few times learns the values instead of
the copying, and fails on the first name it has not seen. Swapping the value in request and answer alike makes
the same sentence about something else; nothing but copying is left to learn.
"""

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from edgeft.data.chat import Example

OPEN_VALUES = 20  # a field with fewer distinct values is a choice from a list, not a copy
COPIED_SHARE = 0.8  # of a copied field's values stand word for word in the request
MADE_UP_SHARE, VOCABULARY_SHARE, REQUEST_SHARE = 0.15, 0.35, 0.2  # of swapped-in words; the rest is from values
JOINED_SHARE = 0.4  # of the vocabulary's: two pieces made one word
CONSONANTS, VOWELS = "bcdfghjklmnprstvwz", "aeiou"


Words = tuple[Sequence[str], Sequence[str], Sequence[str]]  # from values, from requests, of the vocabulary


def swap_copied_values(
    examples: list[Example], copies: int, seed: int, vocabulary: Sequence[str] = ()
) -> list[Example]:
    """`copies` variants of each example, if some have copied values in their JSON answers; else none.

    A field counts as copied when it has at least `OPEN_VALUES` distinct values in all examples, `COPIED_SHARE` of
    which stand in the last user message. Variants are made of words of the other examples, pieces of the
    tokenizer's `vocabulary` (a piece has one token behind a space and other tokens behind a quote; a model learns
    that they spell the same by meeting both), and made-up words. An example with nothing to swap is repeated, so that
    the balance of the set stays. The variants come in the order of the examples, the same for a seed.
    """
    rng = random.Random(seed)
    fields = {field for field, values in _copied_values(examples).items() if len(set(values)) >= OPEN_VALUES}
    pool = sorted({w for f, vs in _copied_values(examples).items() if f in fields for v in vs for w in v.split()})
    if not fields:
        return []
    spoken = sorted({w for e in examples for w in _request(e).split() if w.isalpha()})
    result: list[Example] = []
    for example in examples:
        values = [v for f, v in _answer_values(example) if f in fields and _request(example).count(v) == 1]
        result.extend(_variant(example, values, (pool, spoken, vocabulary), rng) for _ in range(copies))
    return result


def _copied_values(examples: list[Example]) -> dict[str, list[str]]:
    """Field → the values that stand in the request, for fields where most do."""
    copied: dict[str, list[str]] = defaultdict(list)
    count: dict[str, int] = defaultdict(int)
    for example in examples:
        for field, value in _answer_values(example):
            count[field] += 1
            if value in _request(example):
                copied[field].append(value)
    return {field: values for field, values in copied.items() if len(values) >= COPIED_SHARE * count[field]}


def _answer_values(example: Example) -> Iterator[tuple[str, str]]:
    """(path, text) of every string in the answer with a letter in it, if the answer is a JSON object."""
    try:
        answer = json.loads(example.answer)
    except (json.JSONDecodeError, RecursionError):
        return
    if isinstance(answer, dict):
        yield from _strings("", answer)


def _strings(path: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(f"{path}/{key}", inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(path, inner)
    elif isinstance(value, str) and any(c.isalpha() for c in value):
        yield path, value


def _request(example: Example) -> str:
    said = [m["content"] for m in example.messages[:-1] if m["role"] == "user"]
    return said[-1] if said else ""


def _variant(example: Example, values: list[str], words: Words, rng: random.Random) -> Example:
    messages = [dict(message) for message in example.messages]
    answer = messages[-1]
    for value in values:
        request = next(m for m in reversed(messages[:-1]) if m["role"] == "user")
        fresh = _phrase(len(value.split()), words, rng)
        old, new = json.dumps(value, ensure_ascii=False), json.dumps(fresh, ensure_ascii=False)
        if request["content"].count(value) != 1 or answer["content"].count(old) != 1:
            continue  # an earlier swap, or the answer itself, made the place ambiguous
        request["content"] = request["content"].replace(value, fresh)
        answer["content"] = answer["content"].replace(old, new)
    return replace(example, messages=messages)


def _phrase(n_words: int, words: Words, rng: random.Random) -> str:
    """About as many words as the value it stands for."""
    return " ".join(_word(words, rng) for _ in range(max(1, n_words + rng.choice((-1, 0, 0, 0, 1)))))


def _word(words: Words, rng: random.Random) -> str:
    pool, spoken, vocabulary = words
    draw = rng.random()
    if draw < MADE_UP_SHARE:
        return "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(rng.choice((2, 2, 3))))
    if draw < MADE_UP_SHARE + VOCABULARY_SHARE and vocabulary:
        pieces = 2 if rng.random() < JOINED_SHARE else 1
        return "".join(rng.choice(vocabulary) for _ in range(pieces))
    return rng.choice(spoken if draw < MADE_UP_SHARE + VOCABULARY_SHARE + REQUEST_SHARE else pool)
