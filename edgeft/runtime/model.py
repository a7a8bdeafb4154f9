"""The one interface of every runtime, and the door to the backends.

Shapes: T tokens of a sequence, V entries of the vocabulary.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypedDict, Unpack, cast

from edgeft.errors import MissingExtra, ModelError
from edgeft.runtime.header import check_gguf

if TYPE_CHECKING:
    import numpy as np

Message = Mapping[str, Any]
"""One chat message: `role`, `content` and whatever else the model's template reads."""


class Sampling(TypedDict, total=False):
    """How the next token is chosen; by default the most likely one is taken."""

    temperature: float
    """0 (the default): always the most likely token."""
    top_k: int
    """Draw among this many most likely tokens; 0 (the default): all."""
    top_p: float
    """Draw among the most likely tokens that together reach this probability; 1 (the default): all."""
    seed: int
    """The same seed (default 0) gives the same answer."""


class Model(Protocol):
    """A model ready to run. Token ids are those of the file's own vocabulary.

    A model holds one sequence at a time: a later call ends the streams begun before it.
    """

    n_vocab: int
    n_ctx: int
    """Longest sequence, prompt and answer together, in tokens."""
    n_threads: int
    """CPU threads in use."""
    eos_ids: frozenset[int]
    """Tokens that end an answer."""
    metadata: dict[str, str]
    """What the file says about itself."""

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The text of a chat, by the template in the file. Raises ModelError where that fails."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """Ids of `text`. Special tokens in it are parsed. No BOS is added: that is the template's."""
        ...

    def detokenize(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens. Bytes that are not UTF-8 become U+FFFD."""
        ...

    def stream(
        self,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int,
        stop: Sequence[int] = (),
        ignore_eos: bool = False,
        **sampling: Unpack[Sampling],
    ) -> Iterator[int]:
        """Yield the tokens of an answer as they are made, up to the end token (left out) or the full context.

        `stop` names further tokens that end the answer; with `ignore_eos` only those do, for measuring speed.
        Nothing of an earlier call is reused: the whole
        prompt is computed when the first token is asked for.
        Raises RuntimeFault when the prompt is empty or does not fit, or the runtime fails; UsageError for
        sampling values that make no sense.
        """
        ...

    def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int,
        stop: Sequence[int] = (),
        **sampling: Unpack[Sampling],
    ) -> list[int]:
        """All tokens of `stream`."""
        ...

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        max_new_tokens: int = 128,
        stop: Sequence[int] = (),
        **sampling: Unpack[Sampling],
    ) -> str:
        """The assistant's answer to `messages`."""
        ...

    def score(self, ids: Sequence[int]) -> "np.ndarray":
        """Teacher-forced logits (T, V), float32: row t is about the token after `ids[t]`."""
        ...

    def close(self) -> None:
        """Free the memory. The model cannot be used afterwards."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def load(
    path: str | Path,
    *,
    n_ctx: int = 1024,
    n_threads: int | None = None,
    n_gpu_layers: int = 0,
    providers: Sequence[str] = (),
) -> Model:
    """Open a GGUF file in llama.cpp, or an ONNX file or the folder it is in in onnxruntime.

    `n_ctx` is cut to the context the model was trained with. `n_threads` None means the backend's choice; llama.cpp:
    a thread for every 20 M parameters, at least one and at most one for every CPU this process may use.
    `n_gpu_layers` is llama.cpp's, `providers` are onnxruntime's execution providers (none: its own choice). Raises
    ModelError when there is no such model or it is plainly damaged, RuntimeFault when the backend refuses it,
    MissingExtra when the backend's package is not installed.
    """
    path = Path(path)
    if path.suffix == ".onnx" or (path.is_dir() and any(path.glob("*.onnx"))):
        folder = path if path.is_dir() else path.parent
        onnx = _backend("edgeft.runtime.onnx", "onnx", folder)
        return cast(Model, onnx.OnnxModel(folder, n_ctx=n_ctx, n_threads=n_threads, providers=providers))
    if path.is_dir():
        raise ModelError(f"{path}: a folder, not a model file; export it first (edgeft export)")
    check_gguf(path)
    llama = _backend("edgeft.runtime.llama", "gguf", path)
    return cast(Model, llama.LlamaModel(path, n_ctx=n_ctx, n_threads=n_threads, n_gpu_layers=n_gpu_layers))


def _backend(module: str, extra: str, path: Path) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            raise ModelError(f"{path}: this edgeft has no runtime for {extra.upper()} models") from None
        if error.name is None or error.name.split(".")[0] == "edgeft":
            raise
        raise MissingExtra(
            f"this needs {error.name}, which is not installed; run: pip install 'edgeft[{extra}]'"
        ) from None
