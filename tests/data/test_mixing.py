"""Splitting, redaction, and what the recipe's data section does with several sources."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeft.console import silent_log
from edgeft.data.mixing import example_hash, mix
from edgeft.data.pii import find_personal_data
from edgeft.data.reading import read_examples
from edgeft.data.redact import FORMS, Surrogates, redact_examples, redact_text
from edgeft.data.split import parse_shares, split_examples
from edgeft.errors import DataError, UsageError
from edgeft.sections import Data
from tests.data.planted import bot, pair, row, sentence, user


def example(i: object, label: str = "x", **more: Any) -> dict[str, Any]:
    return {"messages": [user(sentence(i)), bot(label)], **more}


def test_shares_hold_within_each_label_and_order_does_not_matter() -> None:
    examples = [example(i, label=f"label {i % 4}") for i in range(200)]
    places = split_examples(examples, (0.8, 0.1, 0.1), stratify="answer")
    for label in range(4):
        assert Counter(places[label::4]) == {"train": 40, "validation": 5, "test": 5}
    backwards = split_examples(examples[::-1], (0.8, 0.1, 0.1), stratify="answer")
    assert backwards[::-1] == places
    assert split_examples(examples, (0.8, 0.1, 0.1), stratify="answer", seed=1) != places


def test_groups_prompts_and_near_duplicates_stay_together() -> None:
    examples = [example(i, patient=i // 5) for i in range(100)]
    examples += [example(i, label="another answer", patient=i // 5) for i in range(0, 100, 10)]
    near = [example(i, patient=i // 5) for i in range(100)]
    for one in near:
        one["messages"][0]["content"] = one["messages"][0]["content"].replace("case", "chapter")
    places = split_examples(examples + near, (0.6, 0.2, 0.2), group="patient")
    sides: dict[int, set[str]] = {}
    for one, place in zip(examples + near, places, strict=True):
        sides.setdefault(one["patient"], set()).add(place)
    assert all(len(side) == 1 for side in sides.values())
    assert set(places) == {"train", "validation", "test"}


@pytest.mark.parametrize("text", ["80", "a/b/c", "-1/1/1", "0/0/0", "1/2"])
def test_bad_shares(text: str) -> None:
    with pytest.raises(UsageError, match="80/10/10"):
        parse_shares(text)


def test_a_field_no_example_has() -> None:
    with pytest.raises(UsageError, match="--group patient"):
        split_examples([example(1)], (1, 0, 0), group="patient")


# text, what is found: by the definitions of RFC 5321, ISO 7812, ISO 13616, RFC 791/4291, E.164
@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("Mail jane.doe@example.com now", ["EMAIL_ADDRESS"]),
        ("pay with 4111 1111 1111 1111 or 4111111111111111", ["CREDIT_CARD", "CREDIT_CARD"]),
        ("not a card: 4111111111111112 units", []),
        ("IBAN GB82 WEST 1234 5698 7654 32", ["IBAN_CODE"]),
        ("host 192.168.1.17 and 2001:db8::8a2e:370:7334", ["IP_ADDRESS", "IP_ADDRESS"]),
        ("call +44 20 7946 0958 please", ["PHONE_NUMBER"]),
        ("see https://www.example.org/a?b=1", ["URL"]),
        ("my ssn is 536-22-1234", ["US_SSN"]),
        ("born on 12/31/1999", ["DATE_TIME"]),
        ("in 2014, version 3.11.7, 42 apples, on Thursday", []),
        ("file.py and e.g. this, 3.5 of 10", []),
    ],
)  # fmt: skip
def test_what_is_personal(text: str, kinds: list[str]) -> None:
    assert [found.kind for found in find_personal_data(text)] == kinds


def test_recall_and_precision_on_presidios_set(shared: Path, repo_root: Path) -> None:
    """The benchmark's own numbers; its script counts by overlap of spans."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("data_pii", repo_root / "benchmarks" / "data_pii.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    counts, _ = module.score(json.loads((shared / "data/presidio_pii/synth_dataset_v2.json").read_text()))
    assert set(counts) == set(FORMS)
    for kind, one in counts.items():
        assert one["recall"] >= 0.95, kind
        assert one["precision"] >= 0.90, kind


def test_redaction_is_consistent_and_keeps_structure_and_labels(tmp_path: Path) -> None:
    answer = {"to": "jane@example.com", "card": 4111111111111111, "tags": ["JANE@example.com"], "n": None}
    call = {"id": "c", "type": "function", "function": {"name": "mail", "arguments": '{"to": "bob@example.com"}'}}
    lines = [
        row(user("write jane@example.com"), bot(json.dumps(answer)), label="mail 10.0.0.1"),
        row(user("and bob@example.com?"), bot("", tool_calls=[call])),
        row(user("nothing here"), bot("ok")),
    ]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))
    done = redact_examples(read_examples(tmp_path / "in.jsonl"), tmp_path / "out.jsonl", FORMS, None, silent_log())
    one, two, three = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert one["messages"][0]["content"] == "write <EMAIL_ADDRESS_1>"
    assert json.loads(one["messages"][1]["content"]) == answer | {
        "to": "<EMAIL_ADDRESS_1>",
        "tags": ["<EMAIL_ADDRESS_1>"],
    }
    assert one["label"] == "mail 10.0.0.1"
    assert json.loads(two["messages"][1]["tool_calls"][0]["function"]["arguments"]) == {"to": "<EMAIL_ADDRESS_2>"}
    assert three == json.loads(lines[2])
    assert (done.examples, done.changed, done.found, done.different) == (
        3, 2, {"EMAIL_ADDRESS": 5}, {"EMAIL_ADDRESS": 2},
    )  # fmt: skip
    again = read_examples(tmp_path / "out.jsonl")
    assert redact_examples(again, tmp_path / "twice.jsonl", FORMS, None, silent_log()).changed == 0


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.recursive(
        st.none()
        | st.integers()
        | st.text(max_size=20)
        | st.sampled_from(["a@example.com", "10.0.0.1", "4111111111111111"]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    )
)
def test_redacted_json_has_the_same_shape(value: Any) -> None:
    def shape(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shape(one) for key, one in value.items()}
        if isinstance(value, list):
            return [shape(one) for one in value]
        return str if isinstance(value, str) else value

    if isinstance(value, (dict, list)):
        assert shape(json.loads(redact_text(json.dumps(value), Surrogates(FORMS).replace))) == shape(value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, n in (("a", 40), ("b", 20), ("general", 100), ("test", 10)):
        (tmp_path / f"{name}.jsonl").write_bytes(b"\n".join(pair(i, name) for i in range(n)) + b"\n")
    (tmp_path / "alpaca.json").write_text(
        json.dumps([{"instruction": sentence(i), "output": "x"} for i in range(10)], indent=0)
    )
    return tmp_path


def mixed(folder: Path, **section: Any) -> dict[str, list[str]]:
    data = Data.model_validate({"train": "a.jsonl", "validation": "b.jsonl", "test": "test.jsonl"} | section)
    splits = mix(data, folder.joinpath, 42, silent_log()).splits
    return {split: [f"{example.path.stem}:{example.line}" for example in some] for split, some in splits.items()}


def test_weights(folder: Path) -> None:
    train = mixed(folder, train=[{"path": "a.jsonl", "weight": 0.25}, {"path": "alpaca.json", "weight": 2.5}])["train"]
    counts = Counter(name.split(":")[0] for name in train)
    assert counts == {"a": 10, "alpaca": 25}
    assert set(Counter(train).values()) == {1, 2, 3}
    assert mixed(folder, train=[{"path": "a.jsonl", "weight": 0.25}])["train"] == train[:10]


def test_replay_is_a_share_of_the_whole(folder: Path) -> None:
    train = mixed(folder, replay={"path": "general.jsonl", "share": 0.2})["train"]
    assert Counter(name.split(":")[0] for name in train) == {"a": 40, "general": 10}


def test_a_share_for_validation(folder: Path) -> None:
    splits = mixed(folder, validation=0.1)
    assert len(splits["validation"]) == 4
    assert sorted(splits["validation"] + splits["train"]) == sorted(f"a:{i}" for i in range(1, 41))
    with pytest.raises(DataError, match=r"a share of 0.001 of 40 examples is none"):
        mixed(folder, validation=0.001)


@pytest.mark.parametrize(("dedupe", "left"), [("none", 43), ("exact", 41), ("near", 40)])
def test_duplicates_are_left_out(folder: Path, dedupe: str, left: int) -> None:
    near = pair(5, "a").replace(b"case", b"chapter", 1)
    with (folder / "a.jsonl").open("ab") as file:
        file.write(pair(1, "a") + b"\n" + near + b"\n" + pair(3, "test") + b"\n")
    assert len(mixed(folder, dedupe=dedupe)["train"]) == left


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"train": [{"path": "none.jsonl"}]}, "none.jsonl: no such file"),
        (
            {"train": [{"path": "alpaca.json", "columns": {"prompt": "x", "completion": "y"}}]},
            "no row has the column x",
        ),
        ({"train": [{"path": "a.jsonl", "format": "alpaca"}]}, "cannot be used"),
    ],
)
def test_sources_that_cannot_be_used(folder: Path, section: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        mixed(folder, **section)


def test_the_hash_of_an_example_is_that_of_its_line(folder: Path) -> None:
    import hashlib

    data = Data.model_validate({"train": "a.jsonl", "validation": "b.jsonl", "test": "test.jsonl"})
    first = mix(data, folder.joinpath, 42, silent_log()).splits["train"][0]
    line = (folder / "a.jsonl").read_bytes().splitlines()[0]
    assert example_hash(first) == hashlib.sha256(line).hexdigest()
