"""What the stages `data` and `train` do for `objective: classification`: labels, label sets, and the score."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeft.artifact import Artifact
from edgeft.bench.accuracy import FINISHED, Answer, Evaluation, Scoring, score_answers
from edgeft.bench.examples import read_examples
from edgeft.bench.metrics import score_texts
from edgeft.console import Log
from edgeft.data.chat import Example
from edgeft.errors import ModelError
from edgeft.sections import Data
from edgeft.stages._json import write_json, write_lines
from edgeft.training.encoders import classify
from edgeft.training.labels import LabelSet, collect_labels, encode_examples, unknown_answers

LABELS = "labels.json"
METRICS = ("label_accuracy", "macro_f1")
SHOWN_LABELS = 5


def write_label_sets(
    splits: Mapping[str, list[Example]], tokenizer: Any, section: Data, out: Path, log: Log
) -> tuple[dict[str, list[Example]], dict[str, dict[str, int]]]:
    """Write labels.json (the labels in the order of their ids) and tokens-SPLIT.npz (LabelSet) of every split.

    Returns the examples kept and the counts, by split; `splits` has a `train`. A test text that is too long is
    cut, as it will be on the device, and never dropped. Raises DataError when the answers are no labels or a text
    is too long under `on_too_long: error`, ModelError when the tokenizer has no padding token.
    """
    if tokenizer.pad_token_id is None:
        raise ModelError("the base's tokenizer has no padding token; a classifier is trained on padded texts")
    labels = collect_labels(splits["train"])
    kept: dict[str, list[Example]] = {}
    counts: dict[str, dict[str, int]] = {}
    for split, examples in splits.items():
        with log.progress(f"tokenize {split}", len(examples), "examples") as progress:
            kept[split], encoded, counts[split] = encode_examples(
                examples,
                labels,
                tokenizer,
                max_length=section.max_length,
                on_too_long="truncate" if split == "test" else section.on_too_long,
                report=progress.update,
            )
        encoded.save(out / f"tokens-{split}.npz")
        unknown = unknown_answers(kept[split], labels)
        if unknown:
            shown = ", ".join(repr(label[:40]) for label in unknown[:SHOWN_LABELS])
            log.say(
                f"{split}: {counts[split]['unknown_labels']} examples have an answer that no training example has "
                f"({shown}{', …' if len(unknown) > SHOWN_LABELS else ''}); a classifier cannot give it: they count "
                "as wrong"
            )
    write_json(out / LABELS, labels)
    counts["train"]["labels"] = len(labels)
    return kept, counts


def read_labels(data: Artifact) -> list[str]:
    """The labels of a prepared set, in the order of their ids."""
    labels: list[str] = json.loads(data.file(LABELS).read_bytes())
    return labels


@dataclass(frozen=True)
class LabelWatch:
    """Label accuracy and macro F1 on examples with the answers `references`; a `loop.Watch`."""

    examples: LabelSet
    labels: Sequence[str]
    references: Sequence[str]
    autocast: torch.dtype | None = None

    def __call__(self, model: Any) -> Mapping[str, float]:
        """The metrics of `model` as it stands."""
        if not len(self.examples):
            return {}
        found = classify(model, self.examples, autocast=self.autocast)
        return {s.metric: s.value for s in score_texts(METRICS, [self.labels[i] for i in found], self.references)}


def watch_validation(data: Artifact, labels: Sequence[str], autocast: torch.dtype | None) -> LabelWatch:
    """What is measured of the validation split during training; nothing where that is empty."""
    examples = LabelSet.load(data.file("tokens-validation.npz"))
    references = [e.answer for e in read_examples(data.file("validation.jsonl"))] if len(examples) else []
    return LabelWatch(examples, labels, references, autocast)


def write_evaluation(
    model: Any, data: Artifact, labels: Sequence[str], metrics: Sequence[str], out: Path
) -> dict[str, float]:
    """Classify the test split and write evaluation.json (scores with intervals) and predictions.jsonl, as the
    bench stage does for a file; returns {test_METRIC: value}. Products run in the type of the weights."""
    examples = LabelSet.load(data.file("tokens-test.npz"))
    asked = read_examples(data.file("test.jsonl"))
    started = time.perf_counter()
    found = classify(model, examples)
    answers = _answers(found, examples.lengths, labels)
    wanted = list(dict.fromkeys([*metrics, *METRICS]))
    evaluation: Evaluation = score_answers(asked, answers, Scoring(wanted), time.perf_counter() - started)
    write_json(out / "evaluation.json", {"split": "test", "form": "torch", **evaluation.to_json()})
    write_lines(out / "predictions.jsonl", evaluation.predictions())
    return {f"test_{name}": value for name, value in evaluation.values().items()}


def _answers(found: np.ndarray, lengths: np.ndarray, labels: Sequence[str]) -> list[Answer]:
    return [Answer(labels[i], FINISHED, int(n), 0) for i, n in zip(found, lengths, strict=True)]
