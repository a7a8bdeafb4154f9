"""What is asked of every form of a model, and a GGUF file as one.

Shapes: T tokens of a sequence, V entries of the vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from edgeft.runtime.header import check_gguf
from edgeft.runtime.llama import LlamaModel

if TYPE_CHECKING:
    from edgeft.runtime.onnx import OnnxModel

DEFAULT_N_CTX = 1024

# `general.file_type` of a GGUF file (llama_ftype in llama.h) where it is not of the family "q4".
FILE_TYPE_FAMILIES = {0: "f16", 1: "f16", 32: "f16", 7: "q8_0"}


@dataclass(frozen=True)
class Prompt:
    """A conversation that waits for the assistant's answer."""

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] | None = None

    @property
    def text(self) -> str:
        """The last message, to show which prompt this is."""
        return str(self.messages[-1].get("content", ""))


@dataclass(frozen=True)
class Traits:
    """What a form says about itself, kept when it is closed."""

    family: str
    """Which limits it is judged by: `f16` (also torch, F32, BF16), `q8_0` or `q4` (every smaller type)."""
    n_vocab: int
    n_ctx: int
    """Longest sequence in tokens."""
    bos_id: int | None
    eos_id: int | None
    stop_ids: frozenset[int]
    """Tokens that end an answer."""
    special_ids: frozenset[int]
    """Tokens that no ordinary text contains."""


class Form(Protocol):
    """A form of the model in its real runtime."""

    traits: Traits

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The tokens this form's runtime is given for `prompt`."""
        ...

    def answers(self, prompts: Sequence[Sequence[int]], n_gen: int) -> list[list[int]]:
        """The greedy answer to each prompt, at most `n_gen` tokens, without the end token."""
        ...

    def logits(self, ids: Sequence[int], n_last: int) -> np.ndarray:
        """Teacher-forced logits (n_last, V) float32 after each of the last `n_last` tokens of `ids`."""
        ...


@dataclass(frozen=True)
class FormSource:
    """A form not opened yet. `open` takes the context it must hold in tokens; 0 leaves that to the form."""

    name: str
    open: Callable[[int], AbstractContextManager[Form]]


def gguf_form(name: str, path: Path, n_threads: int | None = None) -> FormSource:
    """The GGUF file `path` in llama.cpp."""
    return FormSource(name, lambda n_ctx: GgufForm(path, n_ctx, n_threads))


class RuntimeForm:
    """A model of `edgeft.runtime` as a form; see `Form`. Closed with the `with` block."""

    def __init__(self, model: "LlamaModel | OnnxModel", family: str, special_ids: frozenset[int]) -> None:
        self.model = model
        self.traits = Traits(
            family=family,
            n_vocab=model.n_vocab,
            n_ctx=model.n_ctx,
            bos_id=model.special_id("bos"),
            eos_id=model.special_id("eos"),
            stop_ids=model.eos_ids,
            special_ids=special_ids,
        )

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """See `Form`."""
        return self.model.tokenize(self.model.render(prompt.messages, tools=prompt.tools))

    def answers(self, prompts: Sequence[Sequence[int]], n_gen: int) -> list[list[int]]:
        """See `Form`."""
        return [self.model.generate(ids, max_new_tokens=n_gen) for ids in prompts]

    def logits(self, ids: Sequence[int], n_last: int) -> np.ndarray:
        """See `Form`."""
        return self.model.score(ids)[-n_last:]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.model.close()


class GgufForm(RuntimeForm):
    """A GGUF file in llama.cpp."""

    def __init__(self, path: Path, n_ctx: int, n_threads: int | None) -> None:
        """Raises ModelError or RuntimeFault as `edgeft.runtime.load` does."""
        header = check_gguf(path)
        model = LlamaModel(path, header=header, n_ctx=n_ctx or DEFAULT_N_CTX, n_threads=n_threads, n_gpu_layers=0)
        file_type = int(model.metadata.get("general.file_type", -1))
        control = frozenset(token for token in range(model.n_vocab) if model.is_control(token))
        super().__init__(model, FILE_TYPE_FAMILIES.get(file_type, "q4"), control)
