"""What is asked of all forms, and what one of them gave.

Shapes: R compared positions of a case, V entries of the vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeft.parity.forms import Prompt, Traits


@dataclass(frozen=True)
class Case:
    """A prompt as the reference tokenizes it, and the reference's greedy answer without the end token."""

    prompt: Prompt
    ids: list[int]
    answer: list[int]
    n_gen: int
    """The limit of the answer's length; a shorter one ended by itself."""

    @property
    def scored(self) -> list[int]:
        """What every form is given; its last R rows of logits are compared."""
        return self.ids + self.answer

    @property
    def n_rows(self) -> int:
        """R: each token of the answer, and what comes after them."""
        return len(self.answer) + 1


@dataclass(frozen=True)
class Taken:
    """What a form gave for every case; the logits wait on disk.

    A form with another number of tokens than the reference is asked for neither answers nor logits.
    """

    name: str
    traits: Traits
    prompt_ids: list[list[int]]
    answers: list[list[int]]
    folder: Path

    def keep_logits(self, case: int, logits: np.ndarray) -> None:
        """Put the logits (R, V) of a case on disk."""
        np.save(self.folder / f"{case}.npy", logits)

    def logits(self, case: int) -> np.ndarray:
        """Logits (R, V) of a case."""
        loaded: np.ndarray = np.load(self.folder / f"{case}.npy", mmap_mode="r")
        return loaded
