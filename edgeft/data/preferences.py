"""Preference pairs: a question, an answer that is preferred and one that is worse, and all three as token ids.

Read from any format `edgeft.data.reading` knows (OpenAI preference rows, TRL's DPO columns, LLaMA-Factory's
chosen and rejected). Both answers continue the same prompt, so its ids stand once.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgeft.conversation.canonical import canonical_row, undecodable
from edgeft.data.chat import SHOWN_PROBLEMS
from edgeft.data.formats import Example
from edgeft.data.formats.common import prompt_length
from edgeft.data.reading import read_examples
from edgeft.data.rendering import ChatTokenizer, encode_chat, encode_prompt
from edgeft.data.surrogates import unusable_place
from edgeft.errors import DataError, EdgeftError, ModelError

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Pair:
    """`prompt`, and the messages of the `chosen` and of the `rejected` continuation; where the pair stands."""

    prompt: Messages
    chosen: Messages
    rejected: Messages
    tools: Messages | None
    path: Path
    line: int

    @property
    def where(self) -> str:
        """`file:line`."""
        return f"{self.path}:{self.line}"

    def canonical(self) -> str:
        """One JSON line as TRL's DPOTrainer reads it (`prompt`, `chosen`, `rejected`, each as messages)."""
        row: dict[str, Any] = {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected}
        return json.dumps(row | ({"tools": self.tools} if self.tools else {}), ensure_ascii=False)


@dataclass(frozen=True)
class EncodedPair:
    """Token ids of a pair. `chosen` and `rejected` follow `prompt`; `*_mask` says which of their ids are learned."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    chosen_mask: list[bool]
    rejected_mask: list[bool]


@dataclass
class EncodedPairs:
    """The pairs kept, their ids, and counts: pairs, dropped, truncated, identical, and the longest in tokens."""

    pairs: list[Pair] = field(default_factory=list)
    encoded: list[EncodedPair] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=lambda: Counter(dropped=0, truncated=0, identical=0, longest=0))


def read_pairs(path: Path, format_name: str | None = None, columns: dict[str, str] | None = None) -> list[Pair]:
    """Every pair of a file.

    Raises DataError naming file:line and the problem of every bad row (the first 20 shown), or that the file is
    missing or holds no pair.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    reading = read_examples(path, format_name, columns)
    pairs: list[Pair] = []
    problems: list[str] = []
    for line, example in reading.examples:
        try:
            pairs.append(_pair(example, path, line))
        except DataError as error:
            problems.append(str(error))
    problems += [str(problem) for problem in reading.problems]
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        shown = problems[:SHOWN_PROBLEMS] + ([f"… and {more} more rows"] if more > 0 else [])
        raise DataError("\n".join([*shown, "mend or remove these rows; nothing was trained"]))
    if not pairs:
        raise DataError(f"{path}: no preference pair in this file")
    return pairs


def split_pairs(pairs: list[Pair], share: float, seed: int = 42) -> tuple[list[Pair], list[Pair]]:
    """(training pairs, held-out pairs), both in file order; pairs of the same prompt stay together.

    Prompts are ranked by the hash of their content and the first are held out until `share` of the pairs is
    reached: the order of the file plays no part. Raises DataError when one of the two would be empty.
    """
    ranks = [_prompt_hash(pair, seed) for pair in pairs]
    sizes = Counter(ranks)
    wanted, taken, held = round(share * len(pairs)), 0, set()
    for rank in sorted(sizes):
        if taken >= wanted:
            break
        held.add(rank)
        taken += sizes[rank]
    train = [pair for pair, rank in zip(pairs, ranks, strict=True) if rank not in held]
    validation = [pair for pair, rank in zip(pairs, ranks, strict=True) if rank in held]
    if not train or not validation:
        raise DataError(
            f"data.preference_validation: a share of {share} of {len(pairs)} pairs with {len(sizes)} different "
            f"prompts leaves {len(train)} to train on and {len(validation)} to watch; add pairs or change the share"
        )
    return train, validation


def encode_pairs(
    pairs: Iterable[Pair],
    tokenizer: ChatTokenizer,
    max_length: int,
    on_too_long: Literal["drop", "truncate", "error"] = "drop",
) -> EncodedPairs:
    """The pairs as token ids through the chat template.

    `max_length` bounds prompt + answer, for either answer. Longer pairs are dropped, cut at `max_length` (and
    dropped if an answer then has nothing left), or raise DataError; pairs whose answers have the same ids say
    nothing and are dropped as `identical`. Raises ModelError for a template that renders prompt and answer
    differently, DataError as file:line for a pair it cannot render.
    """
    result = EncodedPairs()
    for pair in pairs:
        try:
            one = _encode(pair, tokenizer)
        except EdgeftError as error:
            raise type(error)(f"{pair.where}: {error}") from error
        length = len(one.prompt) + max(len(one.chosen), len(one.rejected))
        result.counts["longest"] = max(result.counts["longest"], length)
        if length > max_length:
            if on_too_long == "error":
                raise DataError(
                    f"{pair.where}: prompt and answer have {length} tokens, more than data.max_length = {max_length}; "
                    "shorten them, raise max_length or set on_too_long: drop or truncate"
                )
            one = _cut(one, max_length - len(one.prompt))
            if on_too_long == "drop" or not (any(one.chosen_mask) and any(one.rejected_mask)):
                result.counts["dropped"] += 1
                continue
        if one.chosen == one.rejected:
            result.counts["identical"] += 1
            continue
        result.counts["truncated"] += length > max_length
        result.counts["pairs"] += 1
        result.pairs.append(pair)
        result.encoded.append(one)
    return result


def _pair(example: Example, path: Path, line: int) -> Pair:
    where = f"{path}:{line}"
    if what := unusable_place(example):
        raise DataError(f"{where}: {what}")
    example = canonical_row(example)
    if problem := next(undecodable(example["messages"], example.get("tools")), ""):
        raise DataError(f"{where}: {problem}")
    rejected = example.get("rejected")
    if not rejected:
        raise DataError(f"{where}: no rejected answer beside the preferred one")
    at = prompt_length(example)
    prompt, chosen = example["messages"][:at], example["messages"][at:]
    if not prompt:
        raise DataError(f"{where}: no prompt before the answers")
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer or answer[0]["role"] != "assistant" or answer[-1]["role"] != "assistant":
            raise DataError(f"{where}: the {name} answer does not begin and end with an assistant turn")
        if not answer[-1]["content"].strip() and not answer[-1].get("tool_calls"):
            raise DataError(f"{where}: the {name} answer is empty")
    return Pair(prompt, chosen, rejected, example.get("tools") or None, path, line)


def _prompt_hash(pair: Pair, seed: int) -> str:
    content = json.dumps([[m["role"], m["content"]] for m in pair.prompt])
    return hashlib.sha256(f"{seed}\0{content}".encode()).hexdigest()


def _encode(pair: Pair, tokenizer: ChatTokenizer) -> EncodedPair:
    prompt = encode_prompt(tokenizer, pair.prompt, pair.tools)
    if not prompt:
        raise ModelError("the chat template renders no token before the answer; it needs a generation prompt")
    answers = []
    for answer in (pair.chosen, pair.rejected):
        ids, mask = encode_chat(tokenizer, pair.prompt + answer, pair.tools)
        if ids[: len(prompt)] != prompt:
            raise ModelError(
                "the prompt has other token ids before its answer than alone; end the template's generation "
                "prompt with a newline or a special token"
            )
        end = max((at for at, learned in enumerate(mask) if learned), default=0) + 1
        answers.append((ids[len(prompt) : end], mask[len(prompt) : end]))
    (chosen, chosen_mask), (rejected, rejected_mask) = answers
    return EncodedPair(prompt, chosen, rejected, chosen_mask, rejected_mask)


def _cut(one: EncodedPair, room: int) -> EncodedPair:
    room = max(0, room)
    return EncodedPair(
        one.prompt, one.chosen[:room], one.rejected[:room], one.chosen_mask[:room], one.rejected_mask[:room]
    )
