"""Examples of a classifier: a text and a label, read from chat examples, batched by like length.

The label is the assistant's answer, the text what the user said: the user's turns, joined by line ends. Other
turns are left out; a system turn that is the same for every example tells a classifier nothing.

Shapes: n examples, N tokens end to end, B examples of a group, T the longest of them.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from edgeft.data.chat import Example
from edgeft.errors import DataError

UNKNOWN = -1  # the label id of an answer that no training example has
MAX_LABELS = 1000
MAX_LABEL_CHARACTERS = 100
GROUP_FILL = 0.75  # an example shorter than this share of the group's longest opens a new group


@dataclass(frozen=True)
class LabelGroup:
    """Examples of like length: `input_ids`, `attention_mask` (B, T) padded at the right; `labels` (B,);
    `rows` (B,), their places in the batch's index."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    rows: np.ndarray


@dataclass(frozen=True)
class LabelBatch:
    """Some examples of a LabelSet: `groups` hold each of the examples `index` once."""

    groups: list[LabelGroup]
    index: np.ndarray

    @property
    def n_tokens(self) -> int:
        """Real tokens, padding not counted."""
        return sum(int(group.attention_mask.sum()) for group in self.groups)

    @property
    def loss_count(self) -> int:
        """Examples with a known label: the loss is a sum over these."""
        return sum(int((group.labels != UNKNOWN).sum()) for group in self.groups)


@dataclass(frozen=True)
class LabelSet:
    """Encoded texts end to end and their labels: `input_ids` (N,) int32, `offsets` (n+1,) int64,
    `label_ids` (n,) int32, UNKNOWN where training has no such label; `pad_id` fills up the groups."""

    input_ids: np.ndarray
    offsets: np.ndarray
    label_ids: np.ndarray
    pad_id: int = 0

    def __len__(self) -> int:
        return len(self.label_ids)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, (n,)."""
        return np.diff(self.offsets)

    @staticmethod
    def build(texts: Sequence[Sequence[int]], label_ids: Sequence[int], pad_id: int = 0) -> "LabelSet":
        """From the token ids and the label id of each example."""
        lengths = [len(ids) for ids in texts]
        return LabelSet(
            np.fromiter((token for ids in texts for token in ids), dtype=np.int32),
            np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
            np.asarray(label_ids, dtype=np.int32),
            pad_id,
        )

    def pack(self, index: np.ndarray) -> LabelBatch:
        """The examples `index` (B,), in groups of like length."""
        lengths = self.lengths[index]
        return LabelBatch([self._group(index, rows) for rows in _like_lengths(lengths)], index)

    def save(self, path: Path) -> None:
        """Write as an uncompressed .npz, the same bytes for the same content."""
        np.savez(
            path, input_ids=self.input_ids, offsets=self.offsets, label_ids=self.label_ids, pad_id=np.int64(self.pad_id)
        )

    @staticmethod
    def load(path: Path) -> "LabelSet":
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return LabelSet(arrays["input_ids"], arrays["offsets"], arrays["label_ids"], int(arrays["pad_id"]))

    def _group(self, index: np.ndarray, rows: np.ndarray) -> LabelGroup:
        chosen = index[rows]
        lengths = self.lengths[chosen]
        columns = np.arange(lengths.max(initial=0))
        real = columns < lengths[:, None]
        ids = np.where(real, self.input_ids[np.where(real, self.offsets[chosen][:, None] + columns, 0)], self.pad_id)
        return LabelGroup(
            torch.from_numpy(ids.astype(np.int64)),
            torch.from_numpy(real.astype(np.int64)),
            torch.from_numpy(self.label_ids[chosen].astype(np.int64)),
            rows,
        )


def collect_labels(examples: Sequence[Example]) -> list[str]:
    """The different answers of the training examples, sorted: the labels, in the order of their ids.

    Raises DataError when there are less than two, or when the answers are no labels: more than MAX_LABELS,
    long, of several lines, or mostly different from one example to the next.
    """
    first: dict[str, Example] = {}
    for example in examples:
        first.setdefault(_label(example), example)
    labels = sorted(first)
    advice = "a classifier (train.objective: classification) wants a short label as answer; use sft for other answers"
    for label in labels:
        where = f"{first[label].path}:{first[label].line}"
        if not label:
            raise DataError(f"{where}: the answer is empty or a tool call; {advice}")
        if len(label) > MAX_LABEL_CHARACTERS or "\n" in label:
            raise DataError(f"{where}: the answer is no label but a text, {label[:60]!r}…; {advice}")
    if len(labels) == 1:
        raise DataError(f"every training example has the answer {labels[0]!r}: there is nothing to tell apart")
    if len(labels) > MAX_LABELS or len(labels) > max(2, len(examples) / 2):
        raise DataError(
            f"{len(labels)} different answers in {len(examples)} training examples (at most {MAX_LABELS}, each seen "
            f"twice or more on average): {advice}"
        )
    return labels


def encode_examples(
    examples: Sequence[Example],
    labels: Sequence[str],
    tokenizer: Any,
    *,
    max_length: int,
    on_too_long: Literal["drop", "truncate", "error"],
    report: Callable[[int], None] = lambda done: None,
) -> tuple[list[Example], LabelSet, dict[str, int]]:
    """The examples kept, their tokens and labels, and the counts examples, tokens, dropped, truncated, longest,
    unknown_labels.

    Texts get the tokenizer's own special tokens and no chat template. `max_length` is in tokens; where the
    tokenizer names a smaller limit of the model, that holds. An answer that is none of `labels` is UNKNOWN: no
    loss, and wrong. Raises DataError for an example without user turn, or too long under `error`.
    """
    limit = min(max_length, tokenizer.model_max_length)
    ids = {label: at for at, label in enumerate(labels)}
    counts = dict.fromkeys(("examples", "tokens", "dropped", "truncated", "longest", "unknown_labels"), 0)
    kept: list[Example] = []
    encoded: list[list[int]] = []
    for number, example in enumerate(examples, 1):
        text = example_text(example)
        tokens = tokenizer(text, truncation=False, verbose=False).input_ids
        counts["longest"] = max(counts["longest"], len(tokens))
        if len(tokens) > limit:
            if on_too_long == "error":
                raise DataError(
                    f"{example.path}:{example.line}: {len(tokens)} tokens, more than {limit} (data.max_length or the "
                    "model's own limit); shorten it or set on_too_long: drop or truncate"
                )
            if on_too_long == "drop":
                counts["dropped"] += 1
                continue
            counts["truncated"] += 1
            tokens = tokenizer(text, truncation=True, max_length=limit).input_ids
        kept.append(example)
        encoded.append(tokens)
        if number % 200 == 0:
            report(number)
    label_ids = [ids.get(_label(example), UNKNOWN) for example in kept]
    made = LabelSet.build(encoded, label_ids, pad_id=tokenizer.pad_token_id or 0)
    counts |= {"examples": len(kept), "tokens": len(made.input_ids), "unknown_labels": label_ids.count(UNKNOWN)}
    return kept, made, counts


def example_text(example: Example) -> str:
    """What a classifier reads: the user's turns, joined by line ends. Raises DataError when there is none."""
    turns = [str(m["content"]) for m in example.messages[:-1] if m["role"] == "user"]
    if not turns:
        raise DataError(f"{example.path}:{example.line}: no user turn: a classifier has nothing to read")
    return "\n".join(turns)


def unknown_answers(examples: Sequence[Example], labels: Collection[str]) -> list[str]:
    """The answers of `examples` that are none of `labels`, sorted."""
    return sorted({_label(example) for example in examples} - set(labels))


def _label(example: Example) -> str:
    return example.answer.strip()


def _like_lengths(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Places of `lengths`, longest first, cut where an example is shorter than GROUP_FILL of its group's longest."""
    order = np.argsort(-lengths, kind="stable")
    falling = lengths[order]
    at = 0
    while at < len(order):
        end = at + int((falling[at:] >= GROUP_FILL * falling[at]).sum())
        yield order[at:end]
        at = end
