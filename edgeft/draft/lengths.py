"""How long the examples are in the base's tokens, and what a recipe should say because of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.errors import DataError

ROOM = 1.25  # what comes may be longer than the longest seen
STEP = 16  # lengths are rounded up to it


@dataclass(frozen=True)
class Lengths:
    """In tokens: the longest example and the longest answer; `refused` examples cannot be rendered."""

    longest: int
    longest_answer: int
    refused: int

    @property
    def max_length(self) -> int:
        """Room for every example, for its variants with other values, and for somewhat longer new ones."""
        return rounded_up(int(ROOM * self.longest))

    @property
    def max_new_tokens(self) -> int:
        """Room for every answer, and some more."""
        return rounded_up(int(ROOM * self.longest_answer))

    def n_ctx(self) -> int:
        """Context of the runtime: the longest prompt and the longest answer, at least 256."""
        return max(256, rounded_up(self.longest + self.max_new_tokens))


def measure(examples: Sequence[dict[str, Any]], base: Path, chat_template: str | None, folder: Path) -> Lengths:
    """Tokenize `examples` as the data stage will. Raises DataError when the template refuses every one, ModelError
    as `load_tokenizer` and `apply_template` do."""
    from edgeft.data.rendering import encode_chat
    from edgeft.data.tokenizing import apply_template, load_tokenizer

    tokenizer = load_tokenizer(base)
    apply_template(tokenizer, chat_template, folder)
    longest = longest_answer = refused = 0
    first: DataError | None = None
    for example in examples:
        try:
            ids, learned = encode_chat(tokenizer, example["messages"], example.get("tools"))
        except DataError as error:
            refused, first = refused + 1, first or error
            continue
        longest, longest_answer = max(longest, len(ids)), max(longest_answer, _longest_run(learned))
    if not longest and first is not None:
        raise first
    return Lengths(longest, longest_answer, refused)


def measure_questions(examples: Sequence[dict[str, Any]], base: Path) -> Lengths:
    """The last questions of `examples` in the tokens of an encoder, which reads nothing else. Raises ModelError."""
    from edgeft.data.tokenizing import load_tokenizer

    tokenizer = load_tokenizer(base)
    asked = [
        next(str(m.get("content") or "") for m in reversed(e["messages"]) if m["role"] == "user") for e in examples
    ]
    return Lengths(max(len(tokenizer(text)["input_ids"]) for text in asked), 1, 0)


def rounded_up(n: int) -> int:
    """The next multiple of `STEP`."""
    return -(-max(1, n) // STEP) * STEP


def _longest_run(learned: Sequence[bool]) -> int:
    best = run = 0
    for each in learned:
        run = run + 1 if each else 0
        best = max(best, run)
    return best
