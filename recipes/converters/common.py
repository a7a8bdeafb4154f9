"""What the converters share: where the data sets lie, how a split is carved out, how files are written."""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Example:
    """One question and its answer; `label` is the original one, which also stratifies the split."""

    question: str
    answer: str
    label: str

    def to_line(self) -> str:
        messages = [{"role": "user", "content": self.question}, {"role": "assistant", "content": self.answer}]
        return json.dumps({"messages": messages, "label": self.label}, ensure_ascii=False)


def output_folder(description: str | None) -> Path:
    """The folder given as `--out`, made if it is missing."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the three files")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    return out


def data_folder(name: str) -> Path:
    """`$EDGEFT_SHARED/data/<name>`; `../shared` by default. Exits where there is none."""
    shared = os.environ.get("EDGEFT_SHARED") or REPOSITORY.parent / "shared"
    folder = Path(shared).resolve() / "data" / name
    if not folder.is_dir():
        raise SystemExit(f"{folder}: no such folder; set EDGEFT_SHARED to the folder that holds data/{name}")
    return folder


def read_text(path: Path) -> str:
    """UTF-8 text. Emoji stored as two encoded surrogates (SNIPS has one) are put together again."""
    text = path.read_bytes().decode("utf-8", "surrogatepass")
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")


def tidy(text: str) -> str:
    """Runs of white space, line ends among them, become one space."""
    return " ".join(text.split())


def write_splits(
    out: Path, train: Sequence[Example], test: Sequence[Example], validation_share: float
) -> list[Example]:
    """Write the three files: the official test split as it is, validation carved out of the rest. Returns what is in
    train.jsonl.

    From training go the questions of the test split (compared without case and spacing) and repetitions.
    Of every label the `validation_share` with the smallest hashes is the validation split: it depends on
    nothing but the texts.
    """
    tested = {_key(example) for example in test}
    unseen = [example for example in train if _key(example) not in tested]
    unique = list({_key(example): example for example in reversed(unseen)}.values())[::-1]
    chosen = _smallest_hashes(unique, validation_share)
    kept = [example for example in unique if _key(example) not in chosen]
    _write(out / "train.jsonl", kept)
    _write(out / "validation.jsonl", (example for example in unique if _key(example) in chosen))
    _write(out / "test.jsonl", test)
    sys.stderr.write(
        f"train {len(kept)}, validation {len(chosen)}, test {len(test)}; left out of train: "
        f"{len(train) - len(unseen)} that are in test, {len(unseen) - len(unique)} repetitions\n"
    )
    return kept


def write_few_labels(out: Path, train: Sequence[Example], n_labelled: int) -> None:
    """Write labelled.jsonl, the training examples with the smallest hashes, and unlabelled.jsonl, the questions of the
    others without their answers."""
    ranked = sorted(train, key=lambda example: _digest(_key(example)))
    _write(out / "labelled.jsonl", ranked[:n_labelled])
    lines = [{"messages": [{"role": "user", "content": example.question}]} for example in ranked[n_labelled:]]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (out / "unlabelled.jsonl").write_text(text, encoding="utf-8", newline="\n")


def _smallest_hashes(examples: Sequence[Example], share: float) -> set[str]:
    by_label: dict[str, list[str]] = {}
    for example in examples:
        by_label.setdefault(example.label, []).append(_key(example))
    chosen: set[str] = set()
    for keys in by_label.values():
        keys.sort(key=_digest)
        chosen.update(keys[: round(len(keys) * share)])
    return chosen


def _key(example: Example) -> str:
    return tidy(example.question).lower()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write(path: Path, examples: Iterable[Example]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(example.to_line() + "\n" for example in examples)


def read_json(path: Path) -> Any:
    return json.loads(read_text(path))
