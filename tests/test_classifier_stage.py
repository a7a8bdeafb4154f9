"""What the stages write and measure for `objective: classification`."""

import json
from pathlib import Path

import pytest

from edgeft.artifact import Artifact, write_manifest
from edgeft.console import silent_log
from edgeft.data.chat import Example
from edgeft.errors import DataError
from edgeft.sections import Data
from edgeft.stages._classifier import read_labels, watch_validation, write_evaluation, write_label_sets
from edgeft.training.encoders import load_classifier
from tests.tiny_encoder import make_tiny_encoder, word_tokenizer

ROWS = {
    "train": [("turn on the light", "light"), ("light", "light"), ("play music", "music"), ("some song", "music")],
    "validation": [("lamp on", "light"), ("play", "music")],
    "test": [("turn off the lamp please please please", "light"), ("play a song", "music"), ("stop", "alarm")],
}


class _Heard:
    """A log that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.progress = silent_log().progress

    def say(self, text: str) -> None:
        self.lines.append(text)


def _splits() -> dict[str, list[Example]]:
    return {
        split: [
            Example([{"role": "user", "content": q}, {"role": "assistant", "content": a}], Path(split), at, {})
            for at, (q, a) in enumerate(rows, 1)
        ]
        for split, rows in ROWS.items()
    }


def _section(**fields: object) -> Data:
    return Data(train="a", validation="b", test="c", **{"max_length": 8, **fields})


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Artifact, dict[str, dict[str, int]], list[str]]:
    folder, heard = tmp_path / "data", _Heard()
    folder.mkdir()
    kept, counts = write_label_sets(_splits(), word_tokenizer(), _section(), folder, heard)
    for split, examples in kept.items():
        (folder / f"{split}.jsonl").write_text("".join(example.canonical() + "\n" for example in examples))
    return write_manifest(folder, "data", "0" * 64, {}), counts, heard.lines


def test_label_sets_and_counts(prepared: tuple[Artifact, dict[str, dict[str, int]], list[str]]) -> None:
    data, counts, said = prepared
    assert read_labels(data) == ["light", "music"]
    assert counts["train"] == {
        "examples": 4, "tokens": 17, "dropped": 0, "truncated": 0, "longest": 6, "unknown_labels": 0, "labels": 2,
    }  # fmt: skip
    assert counts["test"]["truncated"] == 1  # cut, not dropped: a device gets that question as well
    assert counts["test"]["examples"] == 3
    assert counts["test"]["unknown_labels"] == 1
    assert said == [
        "test: 1 examples have an answer that no training example has ('alarm'); a classifier cannot give it: they "
        "count as wrong"
    ]


def test_the_evaluation_counts_unknown_labels_as_wrong(
    prepared: tuple[Artifact, dict[str, dict[str, int]], list[str]], tmp_path: Path
) -> None:
    data, _, _ = prepared
    labels = read_labels(data)
    model = load_classifier(make_tiny_encoder(tmp_path / "base", "bert"), labels, seed=1)
    metrics = write_evaluation(model, data, labels, ["exact_match"], tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    right = [row["text"] == answer for row, (_, answer) in zip(rows, ROWS["test"], strict=True)]
    assert not right[2]
    assert metrics.keys() == {"test_exact_match", "test_label_accuracy", "test_macro_f1"}
    assert metrics["test_label_accuracy"] == sum(right) / 3
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert (written["split"], written["n"], [s["metric"] for s in written["scores"]]) == (
        "test", 3, ["exact_match", "label_accuracy", "macro_f1"],
    )  # fmt: skip
    watched = watch_validation(data, labels, None)(model)
    assert watched.keys() == {"label_accuracy", "macro_f1"}


def test_an_empty_validation_split_is_not_watched(tmp_path: Path) -> None:
    splits = {**_splits(), "validation": []}
    write_label_sets(splits, word_tokenizer(), _section(), tmp_path, silent_log())
    (tmp_path / "validation.jsonl").write_text("")
    data = write_manifest(tmp_path, "data", "0" * 64, {})
    assert watch_validation(data, ["light", "music"], None)(None) == {}


def test_a_long_training_text_stops_where_asked(tmp_path: Path) -> None:
    splits = _splits()
    splits["train"][0].messages[0]["content"] = "turn on the light " + "please " * 3
    with pytest.raises(DataError, match="train:1: 9 tokens, more than 8"):
        write_label_sets(splits, word_tokenizer(), _section(on_too_long="error"), tmp_path, _Heard())
