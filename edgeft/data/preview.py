"""A conversation as the model meets it: the rendered text in pieces, learned or not."""

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from edgeft.data.formats import Example
from edgeft.data.rendering import ChatTokenizer, encode_chat
from edgeft.errors import EdgeftError


@dataclass(frozen=True)
class Preview:
    """`pieces` are (text, learned) in order; together they are the decoded tokens."""

    line: int
    n_tokens: int
    n_learned: int
    pieces: list[tuple[str, bool]]

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "line": self.line,
            "tokens": self.n_tokens,
            "learned_tokens": self.n_learned,
            "pieces": [{"text": text, "learned": learned} for text, learned in self.pieces],
        }


def preview(tokenizer: ChatTokenizer, example: Example, path: Path, line: int) -> Preview:
    """Render and encode one example as the data stage does. Raises DataError naming file and line."""
    try:
        ids, mask = encode_chat(tokenizer, example["messages"], example.get("tools"))
    except EdgeftError as error:
        raise type(error)(f"{path}:{line}: {error}") from error
    pieces = []
    for learned, run in groupby(zip(ids, mask, strict=True), key=lambda pair: pair[1]):
        pieces.append((str(tokenizer.decode([token for token, _ in run])), learned))
    return Preview(line, len(ids), sum(mask), pieces)
