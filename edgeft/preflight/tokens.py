"""How many tokens a run will see: counted when the data is prepared, guessed from its files when it is not."""

import json
import re
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from edgeft.artifact import Artifact
from edgeft.pipeline import State
from edgeft.recipe import Recipe

CHARACTERS_PER_TOKEN = 3.5  # of a message; its role and marks are TOKENS_PER_MESSAGE
TOKENS_PER_MESSAGE = 5
BYTES_PER_TOKEN = 6  # of raw data a script will turn into chat JSONL, and of what the data stage writes
SAMPLED_LINES = 200
ONE_AXIS = re.compile(rb"'shape': \((\d+),\)")  # in the header of a .npy file
GUESSED_LOSS_SHARE = 0.4  # of a chat's tokens stand in the assistant's turns, where nothing is prepared yet


@dataclass(frozen=True)
class Tokens:
    """The data: tokens of the training split (variants and weights included) and of a mean test prompt, and how many
    test examples; `loss_share` of the training tokens carry loss; `text` is of documents to go on pre-training with,
    `pairs` and `pairs_validation` are of preferences, both answers and their prompt counted; `unlabelled` is of
    questions that a teacher answers, as long as the training examples. `train_examples`, `given` and `longest` are the
    examples of the training split, their tokens without variants and weights, and those of the longest."""

    train: float
    test_examples: float
    per_test_example: float
    validation: float = 0.0
    validation_examples: float = 0.0
    answer: float = 20.0
    loss_share: float = GUESSED_LOSS_SHARE
    text: float = 0.0
    pairs: float = 0.0
    pairs_validation: float = 0.0
    unlabelled: float = 0.0
    train_examples: float = 0.0
    given: float = 0.0
    longest: float = 0.0

    @property
    def taught(self) -> float:
        """What a student learns: the training split, and what the teacher answers beside it."""
        return self.train + self.unlabelled


def count_tokens(recipe: Recipe, states: list[State]) -> Tokens | None:
    """Exact from the prepared data, else guessed from files; None where a script makes data from nothing."""
    prepared = next((s.artifact for s in states if s.planned.stage == "data" and s.artifact), None)
    if prepared is not None:
        return read_tokens(prepared)
    if recipe.data.prepare is not None:
        return guess_from_inputs([recipe.resolve(path) for path in recipe.data.prepare.inputs])
    files = {name: recipe.resolve(path) for name, path in recipe.data.files().items()}
    guessed = {
        name: _guess_from_lines(path, _chat) for name, path in files.items() if name not in ("text", "preference")
    }
    test_lines, test, _ = guessed.pop("test")
    validation_lines, validation, _ = guessed.pop("validation", (0, 0.0, 0.0))
    asked, _, _ = guessed.pop("unlabelled", (0, 0.0, 0.0))
    train = sum(lines * tokens for lines, tokens, _ in guessed.values())
    examples = sum(lines for lines, _, _ in guessed.values())
    each = train / max(1.0, examples)
    text, pairs = files.get("text"), 0.0
    if "preference" in files:
        lines, tokens, _ = _guess_from_lines(files["preference"], _pair)
        pairs = lines * tokens
    share = recipe.data.preference_validation
    return Tokens(
        train * (1 + recipe.data.swap_copied_values),
        test_lines,
        test,
        validation_lines * validation,
        validation_lines,
        text=text.stat().st_size / (CHARACTERS_PER_TOKEN + 0.5) if text else 0.0,
        pairs=pairs * (1 - share),
        pairs_validation=pairs * share,
        unlabelled=asked * each,
        train_examples=examples,
        given=train,
        longest=max((longest for _, _, longest in guessed.values()), default=0.0),
    )


def read_tokens(prepared: Artifact) -> Tokens:
    """The counts of a prepared set: its metrics, its summary.json and the headers of its .npz files."""
    count = prepared.metrics
    variants = count.get("train_variants", 0.0) / max(1.0, count.get("train_examples", 1.0))
    tested = max(1.0, count["test_examples"])
    summary: dict[str, dict[str, Any]] = {}
    with suppress(OSError, ValueError):
        summary = json.loads((prepared.path / "summary.json").read_bytes())
    return Tokens(
        train=_ids_in(prepared.path / "tokens-train.npz") or count["train_tokens"] * (1 + variants),
        test_examples=count["test_examples"],
        per_test_example=count["test_tokens"] / tested,
        validation=count["validation_tokens"],
        validation_examples=count.get("validation_examples", 0.0),
        answer=count.get("test_loss_tokens", 20.0 * tested) / tested,
        loss_share=count.get("train_loss_tokens", count["train_tokens"]) / max(1.0, count["train_tokens"]),
        text=float(summary.get("text", {}).get("tokens", 0)),
        pairs=_ids_in(prepared.path / "pairs-train.npz"),
        pairs_validation=_ids_in(prepared.path / "pairs-validation.npz"),
        unlabelled=summary.get("unlabelled", {}).get("examples", 0)
        * count["train_tokens"]
        / max(1.0, count.get("train_examples", 1.0)),
        train_examples=count.get("train_examples", 0.0),
        given=count["train_tokens"],
        longest=count.get("train_longest", 0.0),
    )


def guess_from_inputs(paths: list[Path]) -> Tokens | None:
    """A script's raw data, taken as a tenth test and a twentieth validation in examples of 40 tokens."""
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*"))]
    total = sum(file.stat().st_size for file in files if file.is_file() and file.suffix != ".py") / BYTES_PER_TOKEN
    if not total:
        return None
    train = 0.85 * total
    return Tokens(
        train, 0.1 * total / 40, 40.0, 0.05 * total, 0.05 * total / 40,
        train_examples=train / 40, given=train, longest=80.0,
    )  # fmt: skip


def _ids_in(path: Path) -> float:
    """Length of the array `input_ids` of an .npz file, from the header of that member; 0 where there is none."""
    with suppress(OSError, KeyError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        with archive.open("input_ids.npy") as member:
            shape = ONE_AXIS.search(member.read(128))
        return float(shape[1]) if shape else 0.0
    return 0.0


def _guess_from_lines(path: Path, count: Callable[[Any], float]) -> tuple[float, float, float]:
    """(lines, tokens a line, tokens of the longest) of JSONL, from its first lines and its size. A bad line counts
    nothing."""
    tokens, longest, n_bytes, n_lines = 0.0, 0.0, 0, 0
    with path.open("rb") as file:
        for line in islice(file, SAMPLED_LINES):
            n_bytes, n_lines = n_bytes + len(line), n_lines + 1
            with suppress(ValueError, KeyError, TypeError):
                counted = count(json.loads(line))
                tokens, longest = tokens + counted, max(longest, counted)
    return path.stat().st_size * n_lines / max(1, n_bytes), tokens / max(1, n_lines), longest


def _chat(line: Any) -> float:
    messages = line["messages"]
    return sum(len(m["content"]) for m in messages) / CHARACTERS_PER_TOKEN + TOKENS_PER_MESSAGE * len(messages)


def _pair(line: Any) -> float:
    """Both answers and the prompt they share, which is computed once."""
    return sum(_characters(line[key]) for key in ("prompt", "chosen", "rejected") if key in line) / CHARACTERS_PER_TOKEN


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    return sum(len(message["content"]) + TOKENS_PER_MESSAGE * 3 for message in value)
