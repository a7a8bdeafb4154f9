"""States of prompts' common beginnings, so that a system prompt is evaluated once: in memory, and on disk if wanted.

A file is believed only if it is what was written: its name is the hash of the model, the backend and the tokens, and
it holds the hash of its own state. A state is memory of the backend: the folder must be writable by this user alone,
and files of others are passed over. A file that cannot be read or written is as if there were none.
"""

import hashlib
import os
import stat
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from edgeft.errors import ArtifactError
from edgeft.machine.files import open_to_read, owned_by_us

MAGIC = b"edgeft prefix 1\n"
SUFFIX = ".prefix"
HASH_BYTES = 32
MAX_HELD_BYTES = 64 << 20
"""States in memory; the one used last is kept whatever it needs."""
MAX_FILES, MAX_FILE_BYTES = 16, 1 << 30
"""States on disk; the oldest are removed."""


class PrefixCache:
    """State by the tokens it is of. Used in one's turn."""

    def __init__(self) -> None:
        self._held: OrderedDict[bytes, bytes] = OrderedDict()
        self._folder: Path | None = None
        self._model_hash: Callable[[], bytes] = bytes

    def keep_in(self, folder: Path, model_hash: Callable[[], bytes]) -> None:
        """Keep states in `folder` as well; `model_hash` stands for all that a state depends on but the tokens."""
        self._folder, self._model_hash = folder, model_hash

    def get(self, ids: Sequence[int]) -> bytes | None:
        """The state behind `ids`, if it is known."""
        key = _key(ids)
        state = self._held.get(key)
        if state is None:
            state = self._read(key)
            if state is not None:
                self._hold(key, state)
        else:
            self._held.move_to_end(key)
        return state

    def put(self, ids: Sequence[int], state: bytes) -> None:
        """Keep the state behind `ids`."""
        key = _key(ids)
        self._hold(key, state)
        if self._folder is not None:
            with suppress(OSError, ArtifactError):
                self._write(self._folder, key, state)

    def forget(self, ids: Sequence[int]) -> None:
        """Leave out a state that the backend does not take."""
        key = _key(ids)
        self._held.pop(key, None)
        if self._folder is not None:
            with suppress(OSError):
                self._file(self._folder, key).unlink()

    def clear(self) -> None:
        """Free the memory."""
        self._held.clear()

    def _hold(self, key: bytes, state: bytes) -> None:
        self._held[key] = state
        self._held.move_to_end(key)
        while len(self._held) > 1 and sum(map(len, self._held.values())) > MAX_HELD_BYTES:
            self._held.popitem(last=False)

    def _file(self, folder: Path, key: bytes) -> Path:
        return folder / f"{hashlib.sha256(MAGIC + self._model_hash() + key).hexdigest()}{SUFFIX}"

    def _read(self, key: bytes) -> bytes | None:
        if self._folder is None:
            return None
        path = self._file(self._folder, key)
        try:
            with os.fdopen(open_to_read(path), "rb") as file:
                if not _is_ours(os.fstat(file.fileno())):
                    return None
                head = file.read(len(MAGIC) + HASH_BYTES)
                state = file.read(MAX_FILE_BYTES)
        except OSError:
            return None
        return state if head == MAGIC + hashlib.sha256(state).digest() else None

    def _write(self, folder: Path, key: bytes, state: bytes) -> None:
        """Not made durable: a file that a crash leaves damaged is not believed."""
        from edgeft.artifact import writing  # only for the one who keeps files

        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._file(folder, key)
        with writing(path, durable=False) as temporary:
            temporary.touch(mode=0o600)
            with temporary.open("wb") as file:
                file.writelines((MAGIC, hashlib.sha256(state).digest(), state))
        files = sorted(folder.glob(f"*{SUFFIX}"), key=lambda each: each.stat().st_mtime_ns)
        for old in files[:-MAX_FILES]:
            old.unlink(missing_ok=True)


def hash_files(paths: Sequence[Path]) -> bytes:
    """sha256 over the contents of files, in their order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.digest()


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    pairs = zip(a, b, strict=False)
    return next((at for at, (ours, theirs) in enumerate(pairs) if ours != theirs), min(len(a), len(b)))


def _key(ids: Sequence[int]) -> bytes:
    return hashlib.sha256(array("q", ids)).digest()


def _is_ours(status: os.stat_result) -> bool:
    """Whether a file is a plain one that nobody but this user can have written."""
    return owned_by_us(status) and stat.S_ISREG(status.st_mode) and status.st_size <= MAX_FILE_BYTES
