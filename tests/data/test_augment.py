"""Variants of tool calls: what is swapped, what must stay."""

import json
from pathlib import Path

from edgeft.data.augment import OPEN_VALUES, swap_copied_values
from edgeft.data.chat import Example

ITEMS = [f"{a} {b}" for a in ("green", "fresh", "dried", "small", "sour") for b in ("tea", "figs", "beans", "limes")]


def _example(request: str, answer: str, **extra: str) -> Example:
    messages = [
        {"role": "system", "content": "the list of figs"},
        {"role": "user", "content": request},
        {"role": "assistant", "content": answer},
    ]
    return Example(messages, Path("t.jsonl"), 1, dict(extra))


def _examples() -> list[Example]:
    assert len(ITEMS) >= OPEN_VALUES
    return [
        _example(
            f"please put {item} on the {state} list",
            json.dumps({"tool": "add", "item": item, "list": {"state": state}}, separators=(",", ":")),
            intent="add",
        )
        for item in ITEMS
        for state in ("new", "old")
    ]


def test_copied_values_change_in_request_and_answer_alike_and_nothing_else_does() -> None:
    examples = _examples()
    variants = swap_copied_values(examples, 3, seed=1)
    assert len(variants) == 3 * len(examples)
    fresh = set()
    for i, variant in enumerate(variants):
        source = examples[i // 3]
        answer, before = json.loads(variant.answer), json.loads(source.answer)
        assert variant.messages[1]["content"] == source.messages[1]["content"].replace(before["item"], answer["item"])
        assert (answer["tool"], answer["list"]) == (before["tool"], before["list"])
        assert list(answer) == list(before)
        assert variant.answer == json.dumps(answer, separators=(",", ":"))
        assert variant.messages[0] == source.messages[0]
        assert variant.extra == {"intent": "add"}
        fresh.add(answer["item"])
    assert len(fresh) > len(variants) / 2
    assert [e.answer for e in examples] == [e.answer for e in _examples()]


def test_the_seed_decides() -> None:
    one, same, other = ([v.canonical() for v in swap_copied_values(_examples(), 2, seed=s)] for s in (1, 1, 2))
    assert one == same
    assert one != other


def test_an_example_with_nothing_to_swap_is_repeated() -> None:
    plain = _example("what can you do", json.dumps({"tool": None}))
    twice = _example("green tea and green tea", json.dumps({"item": "green tea"}))
    variants = swap_copied_values([*_examples(), plain, twice], 2, seed=1)
    assert [v.canonical() for v in variants[-4:]] == [e.canonical() for e in (plain, plain, twice, twice)]


def test_words_of_the_vocabulary_are_used() -> None:
    variants = swap_copied_values(_examples(), 3, seed=1, vocabulary=["zzq"])
    words = {w for v in variants for w in json.loads(v.answer)["item"].split()}
    assert {"zzq", "zzqzzq"} <= words


def test_without_copied_fields_there_are_no_variants() -> None:
    few = _examples()[: OPEN_VALUES // 2]
    labels = [_example(f"question {i}", "card_arrival") for i in range(50)]
    not_copied = [_example("one more", json.dumps({"item": f"number {i}"})) for i in range(50)]
    for examples in (few, labels, not_copied, []):
        assert swap_copied_values(examples, 4, seed=0) == []
