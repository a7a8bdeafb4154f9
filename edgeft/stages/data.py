"""Stage `data`: chat files → checked, tokenized examples, and the tokenizer every later stage uses."""

import hashlib
import json
import tempfile
from collections import Counter
from pathlib import Path

from edgeft.artifact import Artifact
from edgeft.console import Log
from edgeft.data.augment import swap_copied_values
from edgeft.data.chat import Example
from edgeft.data.mixing import check_prepared, example_hash, mix
from edgeft.data.prepare import run_prepare
from edgeft.data.rendering import encode_chat
from edgeft.data.tokenizing import word_pieces
from edgeft.errors import DataError, EdgeftError
from edgeft.recipe import Recipe
from edgeft.sections import Data
from edgeft.training.batches import TokenSet
from edgeft.training.models import apply_template, load_tokenizer, resolve_base

SPLITS = ("train", "validation", "test")


def run(recipe: Recipe, inputs: dict[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Write the prepared set; metrics are counts of examples and tokens per split.

    Raises DataError for a line that cannot be used, an example too long under `on_too_long: error`, or a
    training set with nothing left.
    """
    section = recipe.data
    if section is None:
        raise DataError(f"{recipe.name}: the recipe has no data section")
    tokenizer = load_tokenizer(resolve_base(recipe))
    apply_template(tokenizer, recipe.model.chat_template, recipe.folder)
    tokenizer.save_pretrained(out / "tokenizer")
    summary: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as prepared:
        if section.prepare is not None:
            run_prepare(recipe, section.prepare, Path(prepared), log)
        find = recipe.resolve if section.prepare is None else Path(prepared).joinpath
        mixed = mix(section, find, recipe.seed, log)
        names = section.files()
        with (out / "examples.jsonl").open("w", encoding="utf-8") as audit:
            for split, examples in mixed.splits.items():
                kept, tokens, counts = _encode(examples, tokenizer, section, split, log)
                _write(out / f"{split}.jsonl", kept)
                audit.writelines(_audit_line(split, example) for example in kept)
                if split == "train" and section.swap_copied_values:
                    variants = swap_copied_values(kept, section.swap_copied_values, recipe.seed, word_pieces(tokenizer))
                    _write(out / "train-variants.jsonl", variants)
                    audit.writelines(_audit_line("train-variants", example) for example in variants)
                    _, swapped, of_variants = _encode(variants, tokenizer, section, split, log)
                    tokens = tokens.joined(swapped)
                    counts["variants"] = of_variants["examples"]
                    log.say(f"train: {len(variants)} variants with copied values swapped")
                tokens.save(out / f"tokens-{split}.npz")
                paths = [find(path) for name, path in names.items() if name.split(".")[0] == split]
                summary[split] = {**counts, **({"source_sha256": _sha256(paths)} if paths else {})}
    summary["train"] |= mixed.counts
    checked = check_prepared(section, out, SPLITS, log)
    if checked:
        summary["check"] = dict(checked)
    if not summary["train"]["examples"]:
        raise DataError(
            f"no training example is left: all {summary['train']['dropped']} are longer than "
            f"data.max_length = {section.max_length} tokens; raise it or set on_too_long: truncate"
        )
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return {f"{split}_{k}": float(v) for split in SPLITS for k, v in summary[split].items() if isinstance(v, int)}


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
            try:
                ids, mask = encode_chat(tokenizer, example.messages, example.extra.get("tools"))  # type: ignore[arg-type]
            except EdgeftError as error:
                raise type(error)(f"{example.path}:{example.line}: {error}") from error
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
