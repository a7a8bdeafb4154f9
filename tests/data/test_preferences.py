"""Preference pairs from every format that holds them, as the ids a runtime would see."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgeft.data.preferences import Pair, encode_pairs, read_pairs, split_pairs
from edgeft.data.rendering import encode_prompt
from edgeft.errors import DataError, ModelError
from tests.tiny import tiny_tokenizer

ASKED = [{"role": "user", "content": "turn on the light"}]
GOOD, BAD = "The light is on.", "No."


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


ROWS: dict[str, dict[str, Any]] = {
    "openai": {
        "input": {"messages": ASKED},
        "preferred_output": _said(GOOD),
        "non_preferred_output": _said(BAD),
    },
    "trl messages": {"prompt": ASKED, "chosen": _said(GOOD), "rejected": _said(BAD)},
    "trl text": {"prompt": ASKED[0]["content"], "chosen": GOOD, "rejected": BAD},
    "trl implicit prompt": {"chosen": ASKED + _said(GOOD), "rejected": ASKED + _said(BAD)},
    "llama-factory": {
        "conversations": [{"from": "human", "value": ASKED[0]["content"]}],
        "chosen": {"from": "gpt", "value": GOOD},
        "rejected": {"from": "gpt", "value": BAD},
    },
}


def _file(folder: Path, *rows: Any) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _pair(asked: str, good: str = GOOD, bad: str = BAD) -> Pair:
    return Pair([{"role": "user", "content": asked}], _said(good), _said(bad), None, Path("p.jsonl"), 7)


@pytest.mark.parametrize("name", ROWS)
def test_every_format_gives_the_same_pair(tmp_path: Path, name: str) -> None:
    (pair,) = read_pairs(_file(tmp_path, ROWS[name]))
    assert (pair.prompt, pair.chosen, pair.rejected, pair.line) == (ASKED, _said(GOOD), _said(BAD), 1)
    assert json.loads(pair.canonical()) == ROWS["trl messages"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": ASKED + _said(GOOD)}, "no rejected answer"),
        ({"prompt": ASKED, "chosen": _said(GOOD), "rejected": []}, "no rejected answer"),
        ({"prompt": ASKED, "chosen": _said(" "), "rejected": _said(BAD)}, "the chosen answer is empty"),
        ({"prompt": ASKED, "chosen": _said(GOOD), "rejected": ASKED}, "the rejected answer does not begin and end"),
        ({"prompt": [], "chosen": _said(GOOD), "rejected": _said(BAD)}, "no prompt before the answers"),
        ({"prompt": ASKED, "chosen": None, "rejected": BAD}, "chosen is null"),
        (["no object"], "a list, not an object"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: Any, problem: str) -> None:
    first = row if isinstance(row, dict) and "messages" in row else ROWS["trl messages"]
    path = _file(tmp_path, first, row)
    with pytest.raises(DataError, match=problem) as caught:
        read_pairs(path)
    assert f"{path}:2: " in str(caught.value)


def test_a_file_without_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_pairs(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="no example"):
        read_pairs(_file(tmp_path))


def test_ids_are_what_the_runtime_sees_and_what_it_should_say() -> None:
    tokenizer = tiny_tokenizer()
    result = encode_pairs([_pair("turn on the light")], tokenizer, 200)
    (one,) = result.encoded
    assert one.prompt == encode_prompt(tokenizer, ASKED)
    assert tokenizer.decode(one.chosen) == GOOD + "<|im_end|>"
    assert tokenizer.decode(one.rejected) == BAD + "<|im_end|>"
    assert one.chosen_mask == [True] * len(one.chosen)
    assert result.counts["pairs"] == 1


def test_only_the_answers_assistant_turns_are_learned() -> None:
    tokenizer = tiny_tokenizer()
    prompt = [*ASKED, *_said("earlier answer"), {"role": "user", "content": "and now?"}]
    chosen = [*_said("one"), {"role": "user", "content": "go on"}, *_said("two")]
    pair = Pair(prompt, chosen, _said("no"), None, Path("p.jsonl"), 1)
    (one,) = encode_pairs([pair], tokenizer, 500).encoded
    learned = [i for i, m in zip(one.chosen, one.chosen_mask, strict=True) if m]
    assert tokenizer.decode(learned) == "one<|im_end|>two<|im_end|>"
    assert "earlier answer" in tokenizer.decode(one.prompt)


def test_long_pairs_are_counted_and_identical_ones_dropped() -> None:
    tokenizer = tiny_tokenizer()
    long = _pair("turn on the light", bad="lights " * 40)
    same = _pair("what is this?", good="yes", bad="yes")
    far = _pair("lights " * 60)
    short = encode_pairs([_pair("turn on the light")], tokenizer, 500).counts["longest"]
    kept = encode_pairs([long, same, far], tokenizer, short)
    assert (len(kept.pairs), kept.counts["dropped"], kept.counts["identical"]) == (0, 2, 1)
    cut = encode_pairs([long, same, far], tokenizer, short, "truncate")
    assert [pair.where for pair in cut.pairs] == ["p.jsonl:7"]
    assert (cut.counts["truncated"], cut.counts["dropped"], cut.counts["pairs"]) == (1, 1, 1)
    assert len(cut.encoded[0].prompt) + len(cut.encoded[0].rejected) == short
    with pytest.raises(DataError, match=rf"p.jsonl:7: .* more than data.max_length = {short}"):
        encode_pairs([long], tokenizer, short, "error")


def test_a_template_that_cannot_be_used_names_the_pair() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.add_tokens("dark")
    with pytest.raises(ModelError, match=r"p.jsonl:7: the token for 'dark' straddles"):
        encode_pairs([_pair("is it d", good="ark", bad="ull")], tokenizer, 100)


def test_held_out_pairs_share_no_prompt_and_do_not_depend_on_order() -> None:
    pairs = [_pair(f"question {n % 40}", good=f"answer {n}") for n in range(60)]
    train, held = split_pairs(pairs, 0.2, seed=3)
    assert 12 <= len(held) <= 13
    assert len(train) + len(held) == 60
    prompts = [{pair.prompt[0]["content"] for pair in part} for part in (train, held)]
    assert not prompts[0] & prompts[1]
    again = split_pairs(pairs[::-1], 0.2, seed=3)[1]
    assert [p.canonical() for p in again[::-1]] == [p.canonical() for p in held]
    assert [p.canonical() for p in split_pairs(pairs, 0.2, seed=4)[1]] != [p.canonical() for p in held]


@pytest.mark.parametrize("n", [1, 3])
def test_a_split_with_an_empty_side_is_refused(n: int) -> None:
    with pytest.raises(DataError, match=r"data.preference_validation"):
        split_pairs([_pair(str(at)) for at in range(n)], 0.1)


@pytest.mark.shared
def test_the_demo_pairs_of_llama_factory_are_read(shared: Path) -> None:
    pairs = read_pairs(shared / "data" / "instruct_small" / "dpo_en_demo.json")
    assert len(pairs) == 300
    assert all(pair.chosen != pair.rejected for pair in pairs)
    assert {pair.prompt[-1]["role"] for pair in pairs} == {"user"}
