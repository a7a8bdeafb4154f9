"""What can be measured: one module for each runtime, found by its name or by the files it accepts.

A backend is a module of this package with the names of `Backend`; a new one is a new file here, nothing lists them.
None imports its runtime before `open_model`, and one with BY_NAME_ONLY is never chosen for a file.
"""

import importlib
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from edgeft.bench.roofline import Work
from edgeft.errors import ModelError, UsageError


@dataclass(frozen=True)
class Setup:
    """How a model is opened and where it runs.

    `backend` None: the one that accepts the file. `n_gpu_layers` is llama.cpp's, `providers` are onnxruntime's
    execution providers in order of preference (none: its own choice), `device` is torch's. `cpus` pins the process
    to these cores before any thread starts.
    """

    backend: str | None = None
    n_ctx: int = 1024
    n_threads: int | None = None
    n_gpu_layers: int = 0
    providers: tuple[str, ...] = ()
    device: str = "cpu"
    cpus: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The setup that `dataclasses.asdict` and JSON made `content` of."""
        lists = {name: tuple(content[name]) for name in ("providers", "cpus")}
        return cls(**{**content, **lists})

    @property
    def uses_gpu(self) -> bool:
        """Whether something other than the processor may compute."""
        others = [name for name in self.providers if name != "CPUExecutionProvider"]
        return self.n_gpu_layers != 0 or self.device != "cpu" or bool(others)


class Runner(Protocol):
    """The part of `edgeft.runtime.Model` that is measured; greedy where nothing else is said."""

    n_vocab: int
    n_ctx: int
    n_threads: int

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str: ...

    def tokenize(self, text: str) -> list[int]: ...

    def detokenize(self, ids: Sequence[int]) -> str: ...

    def stream(self, prompt_ids: Sequence[int], *, max_new_tokens: int, ignore_eos: bool = False) -> Iterator[int]: ...

    def generate(self, prompt_ids: Sequence[int], *, max_new_tokens: int) -> list[int]: ...

    def close(self) -> None: ...


class Backend(Protocol):
    """The names a module of this package has."""

    BY_NAME_ONLY: bool
    """Never chosen for a file that names no backend."""
    DISTRIBUTIONS: tuple[str, ...]
    """Packages whose versions say what was measured."""

    def accepts(self, path: Path) -> bool:
        """Whether this looks like a model of this backend."""
        ...

    def open_model(self, path: Path, setup: Setup) -> Runner:
        """Load the model; the runtime is imported here. Raises what `edgeft.runtime.load` raises."""
        ...

    def work(self, path: Path, model: Runner) -> Work | None:
        """What the roofline needs to know; None where the backend cannot tell."""
        ...


def names() -> list[str]:
    """All backends, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(path: Path, name: str | None = None) -> Backend:
    """The backend called `name`, or the first that accepts `path`.

    Raises UsageError for a name that is none, ModelError when `path` is not a model of that backend or of any.
    """
    if name is not None and name not in names():
        raise UsageError(f"backend {name}: there is no such one; choose among {', '.join(names())}")
    if not path.exists():
        raise ModelError(f"{path}: no such file; give the path of an exported model file")
    backends = {each: _module(each) for each in ([name] if name else names())}
    for backend in backends.values():
        if (name or not backend.BY_NAME_ONLY) and backend.accepts(path):
            return backend
    if name:
        raise ModelError(f"{path}: not a model that the backend {name} can open")
    by_name = [each for each, backend in backends.items() if backend.accepts(path)]
    hint = f", or measure it as it is: --backend {by_name[0]}" if by_name else ""
    raise ModelError(f"{path}: not a model file of any backend; export it first (edgeft export){hint}")


def _module(name: str) -> Backend:
    module: Any = importlib.import_module(f"{__name__}.{name}")
    backend: Backend = module
    return backend
