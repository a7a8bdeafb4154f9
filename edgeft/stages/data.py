"""Stage `data`: chat files → checked, tokenized examples, and the tokenizer every later stage uses."""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.artifact import Artifact
from edgeft.console import Log
from edgeft.data.augment import swap_copied_values
from edgeft.data.chat import Example, conversation_key, named_line, read_questions
from edgeft.data.leakage import check_leakage
from edgeft.data.mixing import check_prepared, example_hash, mix
from edgeft.data.plain import encode_texts, read_texts
from edgeft.data.preferences import encode_pairs, read_pairs, split_pairs
from edgeft.data.prepare import run_prepare
from edgeft.data.rendering import encode_chat, encode_prompt
from edgeft.data.tokenizing import word_pieces
from edgeft.errors import DataError
from edgeft.recipe import Recipe
from edgeft.sections import Data
from edgeft.stages._classifier import write_label_sets
from edgeft.stages._limits import tell_limits
from edgeft.training.batches import TokenSet
from edgeft.training.models import apply_template, load_tokenizer, resolve_base
from edgeft.training.pairs import PairSet

SPLITS = ("train", "validation", "test")


def run(recipe: Recipe, inputs: dict[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Write the prepared set; metrics are counts of examples and tokens per split.

    Raises DataError for a line that cannot be used, an example too long under `on_too_long: error`, or a
    training set with nothing left.
    """
    section = recipe.data
    if section is None:
        raise DataError(f"{recipe.name}: the recipe has no data section")
    objectives = {phase.objective for phase in recipe.train.phases()}
    classifies = "classification" in objectives
    tokenizer = load_tokenizer(resolve_base(recipe))
    if not classifies:
        apply_template(tokenizer, recipe.model.chat_template, recipe.folder)
    tokenizer.save_pretrained(out / "tokenizer")
    with tempfile.TemporaryDirectory() as prepared:
        if section.prepare is not None:
            run_prepare(recipe, section.prepare, Path(prepared), log)
        find = recipe.resolve if section.prepare is None else Path(prepared).joinpath
        mixed = mix(section, find, recipe.seed, log)
        leaked = check_leakage(section, mixed.splits["train"], mixed.splits["test"])
        if not classifies:
            every = (example for split in mixed.splits.values() for example in split)
            tell_limits(every, resolve_base(recipe), log)
        write = write_label_sets if classifies else _write_token_sets
        kept, summary = write(mixed.splits, tokenizer, section, out, log)
        if section.swap_copied_values and not classifies:
            kept["train-variants"] = _add_variants(kept["train"], summary["train"], tokenizer, recipe, out, log)
        if "text" in objectives:
            summary["text"] = _write_texts(find(str(section.text)), tokenizer, section, out, log)
        if section.unlabelled is not None:
            summary["unlabelled"] = _write_questions(
                find(section.unlabelled), mixed.splits, None if classifies else tokenizer, out, log
            )
        if objectives & {"dpo", "orpo"}:
            summary |= _write_pairs(find(str(section.preference)), tokenizer, recipe, out, log)
        report: dict[str, dict[str, object]] = {name: dict(counts) for name, counts in summary.items()}
        for name, paths in _sources(section, find).items():
            report[name]["source_sha256"] = _sha256(paths)
    with (out / "examples.jsonl").open("w", encoding="utf-8") as audit:
        for split, examples in kept.items():
            _write(out / f"{split}.jsonl", examples)
            audit.writelines(_audit_line(split, example) for example in examples)
    report["train"] |= mixed.counts
    if not classifies:
        report["test"]["answer_lengths"] = _answer_lengths(TokenSet.load(out / "tokens-test.npz"))
    if leaked:
        report["test"]["leaked"] = leaked
        log.say(f"test: {leaked} examples are learned from as well (data.allow): their score says nothing of new ones")
    places = {split: [f"{example.path}:{example.line}" for example in kept[split]] for split in SPLITS}
    checked = check_prepared(section, out, places, log)
    if checked:
        report["check"] = dict(checked)
    if not summary["train"]["examples"]:
        raise DataError(
            f"no training example is left: all {summary['train']['dropped']} are longer than "
            f"data.max_length = {section.max_length} tokens; raise it or set on_too_long: truncate"
        )
    (out / "summary.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return {f"{split}_{k}": float(v) for split in SPLITS for k, v in report[split].items() if isinstance(v, int)}


def _write_token_sets(
    splits: Mapping[str, list[Example]], tokenizer: Any, section: Data, out: Path, log: Log
) -> tuple[dict[str, list[Example]], dict[str, dict[str, int]]]:
    """Write tokens-SPLIT.npz of every split; the examples kept and the counts."""
    kept: dict[str, list[Example]] = {}
    counts: dict[str, dict[str, int]] = {}
    for split, examples in splits.items():
        kept[split], tokens, counts[split] = _encode(examples, tokenizer, section, split, log)
        tokens.save(out / f"tokens-{split}.npz")
    return kept, counts


def _answer_lengths(tokens: TokenSet) -> dict[str, int]:
    """How many examples have a last answer of so many tokens, the end of the turn included."""
    counts: Counter[int] = Counter()
    for start, end in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True):
        learned = np.flatnonzero(tokens.loss_mask[start:end])
        gaps = np.flatnonzero(np.diff(learned) > 1)
        counts[len(learned) - (int(gaps[-1]) + 1 if len(gaps) else 0)] += 1
    return {str(length): n for length, n in sorted(counts.items())}


def _add_variants(
    train: list[Example], counts: dict[str, int], tokenizer: Any, recipe: Recipe, out: Path, log: Log
) -> list[Example]:
    """Join variants of the training examples to tokens-train.npz and count them."""
    section = recipe.data
    variants = swap_copied_values(train, section.swap_copied_values, recipe.seed, word_pieces(tokenizer))
    _, swapped, of_variants = _encode(variants, tokenizer, section, "train", log)
    tokens = TokenSet.load(out / "tokens-train.npz").joined(swapped)
    tokens.save(out / "tokens-train.npz")
    counts["variants"] = of_variants["examples"]
    log.say(f"train: {len(variants)} variants with copied values swapped")
    return variants


def _write_texts(path: Path, tokenizer: Any, section: Data, out: Path, log: Log) -> dict[str, int]:
    """Write tokens-text.npz: the documents to go on pre-training with."""
    texts = read_texts(path)
    tokens = TokenSet.build(encode_texts(texts, tokenizer, section.max_length))
    tokens.save(out / "tokens-text.npz")
    log.say(f"text: {len(texts)} documents, {len(tokens.input_ids):,} tokens")
    return {"documents": len(texts), "pieces": len(tokens), "tokens": len(tokens.input_ids)}


def _write_questions(
    path: Path, splits: Mapping[str, list[Example]], tokenizer: Any, out: Path, log: Log
) -> dict[str, int]:
    """Write unlabelled.jsonl: the questions of which no split has the answer. A teacher that answered those of the
    test split would train the student for the verdict. By `tokenizer`, if given, each must be a whole prompt."""
    known = {conversation_key(example.question) for examples in splits.values() for example in examples}
    questions = {conversation_key(example.question): example for example in read_questions(path)}
    kept = [example for key, example in questions.items() if key not in known]
    for example in kept if tokenizer is not None else ():
        with named_line(example.path, example.line):
            encode_prompt(tokenizer, example.messages, example.extra.get("tools"))
    left_out = len(questions) - len(kept)
    log.say(f"unlabelled: {len(kept)} questions" + (f"; {left_out} that stand in a split left out" if left_out else ""))
    _write(out / "unlabelled.jsonl", kept)
    return {"examples": len(kept), "left_out": left_out}


def _write_pairs(path: Path, tokenizer: Any, recipe: Recipe, out: Path, log: Log) -> dict[str, dict[str, int]]:
    """Write pairs-train.npz and pairs-validation.npz, and the pairs kept as JSON Lines beside them."""
    section = recipe.data
    counts: dict[str, dict[str, int]] = {}
    parts = split_pairs(read_pairs(path), section.preference_validation, recipe.seed)
    for split, pairs in zip(("train", "validation"), parts, strict=True):
        encoded = encode_pairs(pairs, tokenizer, section.max_length, section.on_too_long)
        if not encoded.pairs:
            raise DataError(
                f"{path}: no preference pair is left for {split}: of {len(pairs)}, {encoded.counts['dropped']} are "
                f"longer than data.max_length = {section.max_length} tokens and {encoded.counts['identical']} have "
                "the same answer twice"
            )
        PairSet.build(encoded.encoded).save(out / f"pairs-{split}.npz")
        lines = [pair.canonical() + "\n" for pair in encoded.pairs]
        (out / f"pairs-{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        name = "preference" if split == "train" else "preference_validation"
        counts[name] = {key: int(value) for key, value in encoded.counts.items()}
        log.say(f"{name}: " + ", ".join(f"{value} {key}" for key, value in counts[name].items()))
    return counts


def _sources(section: Data, find: Callable[[str], Path]) -> dict[str, list[Path]]:
    """The files each part of the summary came from."""
    sources: dict[str, list[Path]] = {}
    for name, path in section.files().items():
        if name.split(".")[0] in SPLITS:
            sources.setdefault(name.split(".")[0], []).append(find(path))
    return sources


def _audit_line(split: str, example: Example) -> str:
    """Every example of the prepared set by its hash, with the file and line it came from."""
    record = {"split": split, "sha256": example_hash(example), "source": example.path.name, "line": example.line}
    return json.dumps(record, ensure_ascii=False) + "\n"


def _sha256(paths: list[Path]) -> str:
    """Of one file, or of several one behind the other."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _write(path: Path, examples: list[Example]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(example.canonical() + "\n" for example in examples)


def _encode(
    examples: list[Example], tokenizer: object, section: Data, split: str, log: Log
) -> tuple[list[Example], TokenSet, dict[str, int]]:
    """The examples kept, their tokens and the counts. The test split is never dropped or cut: a held-out
    question that does not fit is a wrong answer later on, not one that disappears."""
    kept: list[Example] = []
    encoded: list[tuple[list[int], list[bool]]] = []
    count: Counter[str] = Counter(dropped=0, truncated=0, longest=0)
    with log.progress(f"tokenize {split}", len(examples), "examples") as progress:
        for number, example in enumerate(examples, 1):
            with named_line(example.path, example.line):
                ids, mask = encode_chat(tokenizer, example.messages, example.extra.get("tools"))  # type: ignore[arg-type]
            count["longest"] = max(count["longest"], len(ids))
            if len(ids) > section.max_length and split != "test":
                if section.on_too_long == "error":
                    raise DataError(
                        f"{example.path}:{example.line}: {len(ids)} tokens, more than data.max_length = "
                        f"{section.max_length}; shorten it, raise max_length or set on_too_long: drop or truncate"
                    )
                ids, mask = ids[: section.max_length], mask[: section.max_length]
                if section.on_too_long == "drop" or not any(mask):
                    count["dropped"] += 1
                    continue
                count["truncated"] += 1
            kept.append(example)
            encoded.append((ids, mask))
            if number % 200 == 0:
                progress.update(number)
    if count["dropped"] or count["truncated"]:
        log.say(
            f"{split}: of {len(examples)} examples {count['dropped']} dropped and {count['truncated']} truncated, "
            f"longer than {section.max_length} tokens (longest {count['longest']})"
        )
    tokens = TokenSet.build(encoded)
    return (
        kept,
        tokens,
        {
            "examples": len(kept),
            "tokens": len(tokens.input_ids),
            "loss_tokens": int(tokens.loss_mask.sum()),
            **{name: int(value) for name, value in count.items()},
        },
    )
