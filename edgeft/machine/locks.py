"""One process at a time: a lock on a file, which the system takes back when its holder dies.

Linux and macOS have flock(2). Windows has `_locking` on a byte of the file, which cannot wait, so it is asked again.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeft.errors import ArtifactError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ASKED_AGAIN_S = 0.1
HELD = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
NO_FILE = {errno.ELOOP: "is a link", errno.EISDIR: "is a folder"}


@contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock on the file `path` inside the block; the file is made where there is none, and stays.

    `waiting` is called once when another process holds the lock. Its content is never touched, and a link is not
    followed: in a shared folder it could lead to a file of somebody else. Raises ArtifactError for what is no file
    and on a file system without locks, OSError where the file cannot be opened.
    """
    descriptor = _open(path)
    try:
        if not _taken(descriptor, path):
            if waiting is not None:
                waiting()
            _wait(descriptor, path)
        yield  # closing the file gives the lock back, and so does the death of the process
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        return os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in NO_FILE:
            raise ArtifactError(f"{path}: the lock {NO_FILE[error.errno]}; remove it, then run again") from None
        raise


def _taken(descriptor: int, path: Path) -> bool:
    """Whether the lock was free and is ours now."""
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            _lock_byte(descriptor)
    except OSError as error:
        if error.errno in HELD:
            return False
        raise _refused(error, path) from None
    return True


def _wait(descriptor: int, path: Path) -> None:
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            return
    except OSError as error:
        raise _refused(error, path) from None
    while not _taken(descriptor, path):
        time.sleep(ASKED_AGAIN_S)


def _lock_byte(descriptor: int) -> None:
    import msvcrt  # of Windows alone

    os.lseek(descriptor, 0, os.SEEK_SET)
    msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]


def _refused(error: OSError, path: Path) -> Exception:
    if error.errno not in NO_LOCKS:
        return error
    return ArtifactError(
        f"{path}: this file system has no locks ({error.strerror}); keep the folder on a local disk "
        "(a network file system has to be mounted with locks: NFS with lockd, Lustre with -o flock)"
    )
