"""Every deliberate error of edgeft.

A message says what is wrong, where (file, line, key, tensor) and what to do next. Whatever a user can
cause is one of these; anything else that escapes is a bug of ours and stays a traceback.

    EdgeftError          exit 1
    ├── UsageError       exit 2   the command or its arguments make no sense
    │   └── RecipeError  exit 2   the recipe is wrong; lists every problem with file:line
    ├── MissingExtra     exit 1   an optional dependency is not installed
    ├── ArtifactError    exit 1   an artifact is missing, incomplete or corrupted; the disk refused a write
    │   ├── WriteRefused exit 1   the disk is full, read-only or forbidden
    │   └── BundleError  exit 1   a bundle is damaged, not what its manifest or signature says, or not allowed
    ├── DataError        exit 1   a data file cannot be used
    ├── ModelError       exit 1   a model folder or file cannot be used
    ├── TrainingError    exit 1   training cannot go on (NaN loss, out of memory, nothing to learn from)
    ├── RuntimeFault     exit 1   a runtime (llama.cpp, onnxruntime) refused or failed
    │   ├── RunCutShort  exit 1   it failed midway; what it had done is kept
    │   └── ContextOverflow  exit 1  a prompt is longer than the context
    ├── DataRejected     exit 3   data was read and found faulty
    └── GateFailed       exit 3   a budget is not met
        ├── ParityFailed exit 3   an exported form is not the model that was trained
        └── NotReproduced exit 3  a run made again gave other bytes
"""

from typing import Any


class EdgeftError(Exception):
    """Base of every error meant for people. `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(EdgeftError):
    """The command cannot be understood as given."""

    exit_code = 2


class RecipeError(UsageError):
    """The recipe is wrong. The message lists all problems, one a line, as `file:LINE: key: what`."""


class MissingExtra(EdgeftError):
    """A package of an optional extra is not installed; the message names the extra."""


class ArtifactError(EdgeftError):
    """An artifact is missing, incomplete or corrupted, or could not be written."""


class WriteRefused(ArtifactError):
    """The operating system refused a write: a full, read-only or forbidden place."""


class BundleError(ArtifactError):
    """A bundle is damaged, holds what it may not, or is not what its manifest or signature says."""


class DataError(EdgeftError):
    """A data file cannot be used."""


class DataRejected(EdgeftError):
    """Data was read, and errors in it remain."""

    exit_code = 3


class ModelError(EdgeftError):
    """A model folder or file cannot be used."""


class TrainingError(EdgeftError):
    """Training cannot go on."""


class RuntimeFault(EdgeftError):
    """A runtime refused a file or failed while running it."""


class RunCutShort(RuntimeFault):
    """A runtime failed midway; `partial` is what it had done until then."""

    def __init__(self, message: str, partial: Any = None) -> None:
        super().__init__(message)
        self.partial = partial


class Interrupted(KeyboardInterrupt):
    """Ctrl-C midway; `partial` is what was done until then. Not an EdgeftError: who handles Ctrl-C handles it."""

    def __init__(self, message: str = "stopped with Ctrl-C", partial: Any = None) -> None:
        super().__init__(message)
        self.partial = partial


class ContextOverflow(RuntimeFault):
    """A prompt has more tokens than the context."""


class Int8Warning(UserWarning):
    """A file's int8 products are exact on other processors than this one, or only in a slower way."""


class GateFailed(EdgeftError):
    """A budget is not met."""

    exit_code = 3


class ParityFailed(GateFailed):
    """An exported form of the model is not the model that was trained."""


class NotReproduced(GateFailed):
    """A run made again gave other bytes than the first time."""
