"""The tokens a model is measured on: training conversations as the template renders them, and general text."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.data.chat import read_chat
from edgeft.errors import DataError, EdgeftError

Encode = Callable[[list[dict[str, Any]], list[dict[str, Any]] | None], list[int]]
"""A conversation and its tools, with the answer, as token ids."""
Tokenize = Callable[[str], list[int]]
"""The ids of a text, without BOS or EOS."""

MIN_TOKENS = 2
LONGEST_TOKEN = 16
"""Characters; more text than the tokens wanted could take is not tokenized."""


@dataclass(frozen=True)
class Calibration:
    """Token sequences, each run by itself, and the names of the files they come from."""

    sequences: tuple[tuple[int, ...], ...]
    datasets: tuple[str, ...]

    @property
    def n_tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(map(len, self.sequences))


def read_calibration(
    *,
    examples: Path | None,
    text: Path | None,
    encode: Encode,
    tokenize: Tokenize,
    bos: int | None,
    max_tokens: int,
    chunk_size: int,
    seed: int = 0,
) -> Calibration:
    """At most about `max_tokens` tokens of chat JSONL (`examples`), then as much of `text` as is left, or a quarter.

    Conversations are drawn by `seed`; text is cut into whole chunks of `chunk_size` tokens, the first of each
    replaced by `bos` where there is one, as llama-imatrix does. Sequences longer than a chunk are cut. Raises
    DataError when a file cannot be used or nothing is left.
    """
    chunks = _chunks(_read_text(text)[: LONGEST_TOKEN * max_tokens], tokenize, bos, chunk_size) if text else []
    n_text = sum(map(len, chunks))
    chat: list[tuple[int, ...]] = []
    if examples:
        chat = _conversations(examples, encode, chunk_size, max_tokens - min(n_text, max_tokens // 4), seed)
    left = max_tokens - sum(map(len, chat))
    taken = [*chat, *chunks[: max(1, left // chunk_size)]]
    sequences = [sequence for sequence in taken if len(sequence) >= MIN_TOKENS]
    if not sequences:
        raise DataError("no tokens to measure the model on; give chat JSONL or a longer text")
    return Calibration(tuple(sequences), tuple(path.name for path in (examples, text) if path))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from None


def _chunks(text: str, tokenize: Tokenize, bos: int | None, chunk_size: int) -> list[tuple[int, ...]]:
    """Whole chunks; what is left over at the end counts only where it is all there is."""
    head = [] if bos is None else [bos]
    ids = head + tokenize(text)
    n_whole = max(len(ids) // chunk_size, 1)
    cut = [ids[at * chunk_size : (at + 1) * chunk_size] for at in range(n_whole)]
    return [tuple(head + chunk[len(head) :]) for chunk in cut]


def _conversations(path: Path, encode: Encode, chunk_size: int, max_tokens: int, seed: int) -> list[tuple[int, ...]]:
    rows = read_chat(path)
    random.Random(seed).shuffle(rows)
    taken: list[tuple[int, ...]] = []
    n_tokens = 0
    for row in rows:
        try:
            ids = encode(row.messages, row.extra.get("tools"))[:chunk_size]
        except EdgeftError as error:
            raise type(error)(f"{row.path}:{row.line}: {error}") from error
        if taken and n_tokens + len(ids) > max_tokens:
            break
        taken.append(tuple(ids))
        n_tokens += len(ids)
    return taken
