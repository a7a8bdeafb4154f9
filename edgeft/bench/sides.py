"""What `edgeft compare A B` compares: a model file, what a run or a bundle ships, or any of them in a git revision."""

import io
import shutil
import tarfile
from pathlib import Path, PurePosixPath

from edgeft.artifact import refused_writes
from edgeft.bench.compare import Side
from edgeft.children import run_to_end
from edgeft.errors import UsageError
from edgeft.runs import find_model

GIT_SILENCE_S = 600.0  # a filter of Git LFS may fetch a large file


def find_side(text: str, scratch: Path) -> Side:
    """The side named by `text`: a path, or `REVISION:path` in the repository around the current folder.

    What stands in a revision is unpacked below `scratch`. Raises ModelError where there is no such file or a
    folder holds no single model file, UsageError for a revision or path that git does not know.
    """
    path = Path(text)
    if not path.exists() and ":" in text:
        path = _checked_out(text, scratch)
    return Side(text, str(find_model(path, text).model))


def _checked_out(text: str, scratch: Path) -> Path:
    """Unpack `REVISION:path` (a file or a folder); `git archive` applies the filters of Git LFS as a checkout does."""
    revision, _, inside = text.partition(":")
    if not revision or not inside or revision.startswith("-"):
        raise UsageError(f"{text}: neither a file nor REVISION:path")
    top = _git("rev-parse", "--show-toplevel", what=text).decode().strip()
    commit = _git("rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}", what=text).decode().strip()
    archive = _git("-C", top, "archive", "--format=tar", commit, "--", inside, what=text)
    target = scratch / commit
    with refused_writes(target), tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(target, filter="data")
    return target / PurePosixPath(inside)


def _git(*words: str, what: str) -> bytes:
    if shutil.which("git") is None:
        raise UsageError(f"{what}: git is not installed, so no revision can be read")
    done = run_to_end(("git", *words), f"{what}: git", silence_s=GIT_SILENCE_S)
    if done.code:
        said = " ".join(done.last_lines())
        raise UsageError(f"{what}: no such file, and git does not know it as REVISION:path ({said})")
    return done.stdout
