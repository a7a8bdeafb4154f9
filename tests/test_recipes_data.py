"""The data sets of the recipes: what is committed, what the converters write, what is held out from what."""

import csv
import json
import os
import re
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from edgeft.recipe_reader import read_recipe

SIZES = {"train": 5000, "validation": 200, "test": 300}
ARGUMENTS = {
    "set_light": ["room", "state", "brightness", "color"],
    "set_thermostat": ["celsius", "change"],
    "set_timer": ["duration", "label"],
    "cancel_timer": ["label"],
    "play_media": ["query"],
    "media_control": ["action"],
    "add_to_list": ["item"],
    "remove_from_list": ["item"],
    "get_weather": ["place", "day"],
    None: [],
}
COPIED = ("item", "place", "query", "label")  # open values: whatever was said
RECIPES = ("snips-intent", "banking77", "restaurant8k")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def said(example: dict[str, Any]) -> str:
    return example["messages"][0]["content"]


def answer(example: dict[str, Any]) -> str:
    return example["messages"][-1]["content"]


def values(examples: list[dict[str, Any]], names: tuple[str, ...] = COPIED) -> set[str]:
    return {value for e in examples for name, value in json.loads(answer(e)).items() if name in names}


@pytest.fixture(scope="module")
def home(repo_root: Path) -> Path:
    return repo_root / "recipes" / "home-assistant"


@pytest.fixture(scope="module")
def splits(home: Path) -> dict[str, list[dict[str, Any]]]:
    return {split: read(home / f"{split}.jsonl") for split in SIZES}


def run(script: Path, out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), "--out", str(out)]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | environment, cwd=out.parent, check=False
    )


class TestHomeAssistant:
    def test_the_script_writes_the_committed_bytes(self, home: Path, tmp_path: Path) -> None:
        done = run(home / "generate.py", tmp_path / "again", PYTHONHASHSEED="7")
        assert done.returncode == 0, done.stderr
        for split in SIZES:
            name = f"{split}.jsonl"
            assert (tmp_path / "again" / name).read_bytes() == (home / name).read_bytes()

    def test_another_seed_says_other_things(self, home: Path, tmp_path: Path) -> None:
        command = [sys.executable, str(home / "generate.py"), "--out", str(tmp_path), "--seed", "1"]
        subprocess.run(command, check=True)
        assert (tmp_path / "test.jsonl").read_bytes() != (home / "test.jsonl").read_bytes()

    def test_sizes_and_roles(self, splits: dict[str, list[dict[str, Any]]]) -> None:
        assert {split: len(examples) for split, examples in splits.items()} == SIZES
        for example in (e for examples in splits.values() for e in examples):
            assert [m["role"] for m in example["messages"]] == ["user", "assistant"]

    def test_answers_are_canonical_calls(self, splits: dict[str, list[dict[str, Any]]]) -> None:
        for example in (e for examples in splits.values() for e in examples):
            call = json.loads(answer(example))
            assert answer(example) == json.dumps(call, separators=(",", ":"))
            tool, names = call["tool"], list(call)[1:]
            assert names == [name for name in ARGUMENTS[tool] if name in names]
            assert all(isinstance(call[name], str) and call[name] for name in names)
            assert example["intent"] == (tool or "out_of_scope")

    def test_open_values_stand_in_the_utterance_as_answered(self, splits: dict[str, list[dict[str, Any]]]) -> None:
        for example in (e for examples in splits.values() for e in examples):
            for name, value in json.loads(answer(example)).items():
                if name in COPIED or (name == "room" and value != "all"):
                    assert re.search(rf"\b{re.escape(value)}\b", said(example)), example

    def test_no_utterance_twice(self, splits: dict[str, list[dict[str, Any]]]) -> None:
        counts = Counter(said(e) for examples in splits.values() for e in examples)
        assert counts.most_common(1)[0][1] == 1

    def test_phrases_of_the_test_split_are_nowhere_else(self, splits: dict[str, list[dict[str, Any]]]) -> None:
        phrases = {split: {e["phrase"] for e in examples} for split, examples in splits.items()}
        assert not phrases["test"] & (phrases["train"] | phrases["validation"])
        familiar = sum(e["phrase"] in phrases["train"] for e in splits["validation"])
        assert familiar == 100

    def test_open_values_of_the_test_split_are_never_heard_before(
        self, splits: dict[str, list[dict[str, Any]]]
    ) -> None:
        heard = "".join(f"| {said(e)} |" for split in ("train", "validation") for e in splits[split])
        tested = values(splits["test"])
        assert len(tested) > 90
        assert [value for value in sorted(tested) if f" {value} " in heard] == []

    def test_some_rooms_and_numbers_are_new(self, splits: dict[str, list[dict[str, Any]]]) -> None:
        for name in ("room", "celsius", "brightness", "duration"):
            new = values(splits["test"], (name,)) - values(splits["train"], (name,))
            assert len(new) >= 3, name

    def test_words_of_held_out_phrases_are_taught(
        self, home: Path, splits: dict[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        generate = runpy.run_path(str(home / "generate.py"))
        find_strangers, phrase_type = generate["find_strangers"], generate["Phrase"]
        assert find_strangers() == []
        read_phrases = find_strangers.__globals__["read_phrases"]
        groups = (group for groups in read_phrases("train").values() for _, group in groups)
        assert {p.id for group in groups for p in group} <= {e["phrase"] for e in splits["train"]}
        strange = {
            "illuminate the {room}": "'illuminate' is in 0 training phrases",
            "add {item} to the shopping list": "closer to ('add_to_list', 'item')",
        }
        fixed = {"state": "on"}
        for text, complaint in strange.items():
            held_out = {"set_light": [(1.0, [phrase_type("x", "set_light", (text,), fixed, True)])]}
            monkeypatch.setitem(
                find_strangers.__globals__,
                "read_phrases",
                lambda part, held_out=held_out: held_out if part == "test" else read_phrases(part),
            )
            assert any(complaint in stranger for stranger in find_strangers()), text

    def test_forms_say_no_held_out_phrase(self, home: Path) -> None:
        generate = runpy.run_path(str(home / "generate.py"))
        assert generate["expanded"]("[a|b [c|d]] e[| f]", {"b c e"}) == ("a e", "a e f", "b c e f", "b d e", "b d e f")
        held_out = {
            generate["proper"](text)
            for part in ("validation", "test")
            for groups in generate["read_phrases"](part).values()
            for _, phrases in groups
            for phrase in phrases
            for text in phrase.texts
        }
        forms = [
            phrase
            for groups in generate["read_phrases"]("train").values()
            for _, phrases in groups
            for phrase in phrases
            if ".train_forms." in phrase.id
        ]
        assert len(forms) > 200
        assert [t for form in forms for t in form.texts if generate["proper"](t) in held_out] == []

    def test_every_tool_has_phrases_enough(self, splits: dict[str, list[dict[str, Any]]]) -> None:
        phrases = {(e["intent"], e["phrase"]) for e in splits["train"]}
        assert min(Counter(intent for intent, _ in phrases).values()) >= 25

    def test_the_tool_is_easy_to_see_and_the_answer_is_not(self, splits: dict[str, list[dict[str, Any]]]) -> None:
        pytest.importorskip("sklearn")
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.svm import LinearSVC

        train, test = splits["train"], splits["test"]
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        known = vectorizer.fit_transform([said(e) for e in train])
        asked = vectorizer.transform([said(e) for e in test])
        classifier = LinearSVC().fit(known, [e["intent"] for e in train])
        assert classifier.score(asked, [e["intent"] for e in test]) > 0.9
        nearest = (asked @ known.T).toarray().argmax(axis=1)
        exact = [answer(train[i]) == answer(e) for i, e in zip(nearest, test, strict=True)]
        assert sum(exact) / len(exact) < 0.5


@pytest.fixture(scope="module")
def converted(repo_root: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The output folder of each converter."""
    folders = {}
    for name in ("snips", "banking77", "restaurant8k"):
        folders[name] = tmp_path_factory.mktemp("converted") / name
        script = repo_root / "recipes" / "converters" / f"{name}.py"
        done = run(script, folders[name], EDGEFT_SHARED=str(shared))
        assert done.returncode == 0, done.stderr
    return folders


@pytest.mark.shared
class TestConverters:
    @pytest.mark.parametrize(
        ("name", "train", "validation", "test"),
        [("snips", 12888, 679, 700), ("banking77", 9493, 499, 3080), ("restaurant8k", 7489, 392, 3731)],
    )
    def test_sizes_and_no_overlap(
        self, converted: dict[str, Path], name: str, train: int, validation: int, test: int
    ) -> None:
        splits = {split: read(converted[name] / f"{split}.jsonl") for split in SIZES}
        assert [len(splits[split]) for split in SIZES] == [train, validation, test]
        asked = {split: {said(e).lower() for e in examples} for split, examples in splits.items()}
        assert not asked["train"] & (asked["validation"] | asked["test"])
        assert not asked["validation"] & asked["test"]
        labels = {split: {e["label"] for e in examples} for split, examples in splits.items()}
        assert name == "restaurant8k" or labels["train"] == labels["validation"] == labels["test"]

    def test_banking77_test_is_the_official_one(self, converted: dict[str, Path], shared: Path) -> None:
        with (shared / "data/banking77/test.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        examples = read(converted["banking77"] / "test.jsonl")
        assert [e["label"] for e in examples] == [row["category"] for row in rows]
        assert [said(e).split() for e in examples] == [row["text"].split() for row in rows]
        assert len({answer(e) for e in examples}) == 77

    def test_snips_test_is_the_official_one(self, converted: dict[str, Path], shared: Path) -> None:
        examples = read(converted["snips"] / "test.jsonl")
        assert set(Counter(answer(e) for e in examples).values()) == {100}
        raw = json.loads((shared / "data/snips_nlu/RateBook/validate_RateBook.json").read_text("utf-8"))
        questions = ["".join(part["text"] for part in row["data"]).split() for row in raw["RateBook"]]
        assert [said(e).split() for e in examples if e["label"] == "RateBook"] == questions

    def test_restaurant8k_with_few_labels(self, converted: dict[str, Path]) -> None:
        folder = converted["restaurant8k"]
        train, labelled = read(folder / "train.jsonl"), read(folder / "labelled.jsonl")
        asked = [example["messages"] for example in read(folder / "unlabelled.jsonl")]
        assert len(labelled) == 1024
        assert all(example in train for example in labelled)
        assert all([message["role"] for message in messages] == ["user"] for messages in asked)
        questions = [messages[0]["content"] for messages in asked + [e["messages"] for e in labelled]]
        assert sorted(questions) == sorted(example["messages"][0]["content"] for example in train)

    def test_restaurant8k_spans_are_copied(self, converted: dict[str, Path]) -> None:
        examples = read(converted["restaurant8k"] / "test.jsonl")
        assert sum(len(json.loads(answer(e))) for e in examples) == 3477
        for example in examples:
            found = json.loads(answer(example))
            assert list(found) == [s for s in ("people", "time", "date", "first_name", "last_name") if s in found]
            assert all(value in said(example) for value in found.values())

    @pytest.mark.parametrize("name", ["snips", "banking77", "restaurant8k"])
    def test_the_same_bytes_again(
        self, converted: dict[str, Path], repo_root: Path, shared: Path, tmp_path: Path, name: str
    ) -> None:
        script = repo_root / "recipes" / "converters" / f"{name}.py"
        run(script, tmp_path / "again", EDGEFT_SHARED=str(shared), PYTHONHASHSEED="7")
        for split in SIZES:
            file = f"{split}.jsonl"
            assert (tmp_path / "again" / file).read_bytes() == (converted[name] / file).read_bytes()


class TestConvertersOnMadeUpData:
    def test_missing_data_says_which_variable(self, repo_root: Path, tmp_path: Path) -> None:
        script = repo_root / "recipes" / "converters" / "snips.py"
        done = run(script, tmp_path / "out", EDGEFT_SHARED=str(tmp_path))
        assert done.returncode == 1
        assert "EDGEFT_SHARED" in done.stderr
        assert "snips_nlu" in done.stderr
        assert "Traceback" not in done.stderr

    def test_restaurant8k_offsets_context_and_order(self, repo_root: Path, tmp_path: Path) -> None:
        folder = tmp_path / "data" / "restaurant8k" / "restaurant8k"
        folder.mkdir(parents=True)
        row = {
            "userInput": {"text": "8 of us,  at 7 pm"},
            "context": {"requestedSlots": ["time", "people", "time"]},
            "labels": [
                {"slot": "time", "valueSpan": {"startIndex": 13, "endIndex": 17}},
                {"slot": "people", "valueSpan": {"endIndex": 1}},
            ],
        }
        (folder / "test.json").write_text(json.dumps([row, {"userInput": {"text": "hello"}}]))
        (folder / "train_0.json").write_text(json.dumps([row, {"userInput": {"text": "Hello "}}]))
        script = repo_root / "recipes" / "converters" / "restaurant8k.py"
        done = run(script, tmp_path / "out", EDGEFT_SHARED=str(tmp_path))
        assert "2 that are in test" in done.stderr
        first, second = read(tmp_path / "out" / "test.jsonl")
        assert said(first) == "[people] [time] 8 of us, at 7 pm"
        assert answer(first) == '{"people":"8","time":"7 pm"}'
        assert answer(second) == "{}"

    def test_snips_emoji_in_two_surrogates(self, repo_root: Path, tmp_path: Path) -> None:
        intents = [
            "AddToPlaylist", "BookRestaurant", "GetWeather", "PlayMusic", "RateBook", "SearchCreativeWork",
            "SearchScreeningEvent",
        ]  # fmt: skip
        for intent in intents:
            folder = tmp_path / "data" / "snips_nlu" / intent
            folder.mkdir(parents=True)
            for name, text in ((f"train_{intent}_full.json", " caf\u00e9 "), (f"validate_{intent}.json", "b")):
                rows = [{"data": [{"text": text}, {"text": intent + " PIZZA", "entity": "x"}]}]
                raw = json.dumps({intent: rows}, ensure_ascii=False).encode()
                (folder / name).write_bytes(raw.replace(b"PIZZA", b"\xed\xa0\xbc\xed\xbd\x95"))
        script = repo_root / "recipes" / "converters" / "snips.py"
        done = run(script, tmp_path / "out", EDGEFT_SHARED=str(tmp_path))
        assert done.returncode == 0, done.stderr
        assert said(read(tmp_path / "out" / "train.jsonl")[0]) == "caf\u00e9 AddToPlaylist \U0001f355"


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_read_and_their_scripts_exist(repo_root: Path, name: str) -> None:
    recipe = read_recipe(repo_root / "recipes" / f"{name}.yaml")
    assert recipe.data.prepare is not None
    assert recipe.resolve(recipe.data.prepare.script).is_file()
    assert recipe.gate


def test_home_assistant_recipe_reads(home: Path) -> None:
    recipe = read_recipe(home / "recipe.yaml")
    assert recipe.resolve(recipe.data.test) == home / "test.jsonl"
    assert recipe.export.shipped == "Q4_K_M"
