"""What systems do differently with files: writing at a place, making a folder's names durable, links to folders."""

import errno
import os
import secrets
import threading
from pathlib import Path

from edgeft.errors import ArtifactError

WITHOUT_RIGHT = 1314
"""ERROR_PRIVILEGE_NOT_HELD of Windows: links need the developer mode or an administrator."""
_ONE_POSITION = threading.Lock()


def write_at(descriptor: int, content: memoryview, at: int) -> None:
    """Write the bytes `content` at `at` of the open file, whole. Threads may do so at once."""
    while content:
        n_written = _write_at(descriptor, content, at)
        content, at = content[n_written:], at + n_written


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk.

    Windows syncs no folders and wants a file open for writing.
    """
    windows = os.name == "nt"
    if windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def point(link: Path, target: str) -> None:
    """Make the link `link` lead to the folder `target`, in place of what it led to.

    At any moment the old or the new link is there, but on Windows, which replaces no link to a folder. Raises
    ArtifactError where Windows gives this user no links.
    """
    fresh = link.with_name(f".{link.name}.{secrets.token_hex(4)}.tmp")
    try:
        os.symlink(target, fresh, target_is_directory=True)
    except OSError as error:
        if getattr(error, "winerror", None) == WITHOUT_RIGHT:
            raise ArtifactError(
                f"{link}: Windows gives this user no links; switch on the developer mode in its settings"
            ) from None
        raise
    if os.name == "nt" and link.is_symlink():
        link.unlink()
    os.replace(fresh, link)


def owned_by_us(status: os.stat_result) -> bool:
    """Whether nobody but this user can have written the file; always so where the system knows no such owners."""
    if not hasattr(os, "geteuid"):
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def open_to_read(path: Path) -> int:
    """A descriptor of the file for reading, where it is no link. Raises OSError."""
    return os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))


def forget_pages(path: Path) -> bool:
    """Ask the system to drop what it keeps of the file in memory; whether it could be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _write_at(descriptor: int, content: memoryview, at: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, content, at)
    with _ONE_POSITION:
        os.lseek(descriptor, at, os.SEEK_SET)
        return os.write(descriptor, content)
