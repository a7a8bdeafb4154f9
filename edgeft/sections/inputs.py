"""The recipe's sections `model` and `data`: what a run starts from."""

from typing import Annotated, Literal

from pydantic import Field

from edgeft.sections.base import Section

NANO = "edgeft/nano"


class Model(Section):
    """The model to start from."""

    base: str = NANO
    """`edgeft/nano` (embedded in the package) or a local Hugging Face model folder."""
    chat_template: str | None = None
    """null: the tokenizer's own; `chatml`; `plain`; or the path of a Jinja file."""


class Prepare(Section):
    """A script that makes the data files."""

    script: str
    """A Python file, run as `python script.py --out FOLDER`; the three files are then in FOLDER."""
    inputs: list[str] = []
    """Files or folders the script reads: when one changes, the data is made again."""


class Source(Section):
    """A file of examples in any format `edgeft data import` reads."""

    path: str
    """The file."""
    format: str | None = None
    """Its format; null: seen from the data."""
    columns: dict[str, str] = {}
    """Column map, e.g. `{prompt: question, completion: answer}`."""


class Weighted(Source):
    """A file of examples and how much of it is used."""

    weight: float = Field(1.0, gt=0.0, le=100.0)
    """How often each example is seen in an epoch: 2 is twice; 0.5 is one half of them, always the same."""


class Replay(Source):
    """General examples mixed in, so that what the base model can do is not forgotten."""

    share: float = Field(gt=0.0, lt=1.0)
    """Share of the training examples that come from here."""


class Data(Section):
    """The examples, as chat JSONL: one `{"messages": [...]}` a line, the assistant's answer last; other formats
    are converted."""

    train: str | list[Weighted]
    """File of the examples to learn from, or several, each with a weight."""
    validation: str | Annotated[float, Field(gt=0.0, lt=1.0)]
    """File of the examples watched during training, or the share of the training examples set aside for it."""
    test: str
    """File of the held-out examples the verdict is about."""
    prepare: Prepare | None = None
    """Makes the three files first; they are then names inside its output folder."""
    max_length: int = Field(512, ge=8)
    """Longest example, in tokens."""
    on_too_long: Literal["drop", "truncate", "error"] = "drop"
    """What to do with an example longer than `max_length`; what was done is counted in the report."""
    replay: Replay | None = None
    """General examples against forgetting."""
    dedupe: Literal["none", "exact", "near"] = "none"
    """Training examples left out: those seen before, or that stand in the validation or test file as well."""
    fatal: list[str] = []
    """Codes of `edgeft data check` (or their beginnings, like `E`) that stop the run."""
    allow: list[Literal["E503"]] = []
    """Codes that stop every run, and do not stop this one: `E503`, test examples that are learned from as well."""
    text: str | None = None
    """File of plain text to go on pre-training with (`objective: text`): a .txt file, a blank line between two
    documents, or JSONL with `{"text": ...}`; also what is measured for forgetting when training is over."""
    unlabelled: str | None = None
    """File of questions without answers, for the teacher of `distill` to answer: chat JSONL whose last message is the
    user's, or the assistant's, which is then not looked at."""
    preference: str | None = None
    """File of preferred and rejected answers (`objective: dpo` or `orpo`), in any format `edgeft data import`
    reads."""
    preference_validation: float = Field(0.1, gt=0.0, lt=1.0)
    """Share of the preference pairs set aside to be watched; never trained on."""
    swap_copied_values: int = Field(0, ge=0)
    """Variants of each training example in which values that the JSON answer copies from the request are swapped
    for others, so that a small model learns to copy."""

    def files(self) -> dict[str, str]:
        """Every file named here, by its key."""
        named = {"train": self.train} if isinstance(self.train, str) else {}
        if not isinstance(self.train, str):
            named |= {f"train.{at}": source.path for at, source in enumerate(self.train)}
        if isinstance(self.validation, str):
            named["validation"] = self.validation
        if self.replay is not None:
            named["replay"] = self.replay.path
        if self.text is not None:
            named["text"] = self.text
        if self.unlabelled is not None:
            named["unlabelled"] = self.unlabelled
        if self.preference is not None:
            named["preference"] = self.preference
        return named | {"test": self.test}
