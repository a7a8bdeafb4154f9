"""Other systems behind one seam: what Windows or macOS lack is named in `edgeft/machine` and nowhere else.

Nothing here runs on those systems. What can be shown without them: no module outside the seam names what they lack,
the light modules import where those modules do not exist, and the parts of the seam do their work without them.
"""

import ast
import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from edgeft.errors import ArtifactError
from edgeft.machine import files, locks, process

PACKAGE = Path(__file__).resolve().parents[2] / "edgeft"
# The standard library's modules of one kind of system (its documentation: "Availability").
ONE_SYSTEM = {
    "fcntl", "grp", "msvcrt", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty", "winreg", "winsound",
    "_winapi",
}  # fmt: skip
# Names of `os` and `signal` that Windows, or macOS, has not (their documentation: "Availability").
NOT_EVERYWHERE = {
    "os": {
        "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "chown", "chroot", "copy_file_range", "eventfd",
        "fchdir",
        "fchown", "fork", "forkpty", "geteuid", "getegid", "getgid", "getgroups", "getloadavg", "getpgid",
        "getpriority",
        "getsid", "getuid", "killpg", "lchown", "lockf", "memfd_create", "mkfifo", "mknod", "nice", "posix_fadvise",
        "posix_fallocate", "posix_spawn", "pread", "preadv", "pwrite", "pwritev", "readv", "register_at_fork",
        "sched_getaffinity", "sched_setaffinity", "sendfile", "setgid", "setpgid", "setpriority", "setsid", "setuid",
        "splice", "sync", "sysconf", "uname", "wait", "wait4", "waitid", "writev",
    },
    "signal": {
        "SIGALRM", "SIGBUS", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGPROF", "SIGQUIT", "SIGSTOP",
        "SIGTSTP", "SIGUSR1", "SIGUSR2", "alarm", "pause", "pthread_kill", "pthread_sigmask", "setitimer", "sigwait",
    },
}  # fmt: skip
LIGHT = [
    "edgeft.cli", "edgeft.artifact", "edgeft.store", "edgeft.console", "edgeft.recipe_reader", "edgeft.plan",
    "edgeft.pipeline", "edgeft.preflight", "edgeft.runtime", "edgeft.runtime.untrusted", "edgeft.runtime.bundle",
    "edgeft.runtime.prefix_cache", "edgeft.bench", "edgeft.bench.file", "edgeft.bench.gate", "edgeft.bench.host",
    "edgeft.bench.noise", "edgeft.bench.compare", "edgeft.bench.memory", "edgeft.report.build", "edgeft.bundle.pack",
    "edgeft.data.answer_log", "edgeft.data.reading",
]  # fmt: skip


def outside_the_seam() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] != "machine"]


def names_of_one_system(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in ONE_SYSTEM]
        elif isinstance(node, ast.ImportFrom):
            lacking = NOT_EVERYWHERE.get(node.module or "", set())
            found += [node.module] if node.module in ONE_SYSTEM else []
            found += [f"{node.module}.{alias.name}" for alias in node.names if alias.name in lacking]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            lacking = NOT_EVERYWHERE.get(node.value.id, set())
            found += [f"{node.value.id}.{node.attr}"] if node.attr in lacking else []
    return [name for name in found if name]


def test_only_the_seam_names_what_a_system_lacks() -> None:
    assert {str(path): names for path in outside_the_seam() if (names := names_of_one_system(path))} == {}


def test_the_search_finds_each_kind(tmp_path: Path) -> None:
    code = "import fcntl\nfrom os import fork\nfrom resource import getrusage\nos.pwrite(1, b'', 0)\nsignal.SIGKILL\n"
    (tmp_path / "module.py").write_text(code, "utf-8")
    found = names_of_one_system(tmp_path / "module.py")
    assert sorted(found) == ["fcntl", "os.fork", "os.pwrite", "resource", "signal.SIGKILL"]


def test_text_files_name_their_encoding() -> None:
    """Windows reads and writes text in the encoding of its language where none is named."""
    calls = []
    for path in outside_the_seam():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and _opens_text_without_encoding(node):
                calls.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert calls == []


def _opens_text_without_encoding(call: ast.Call) -> bool:
    keywords = {keyword.arg for keyword in call.keywords}
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if keywords & {"encoding", "fileobj"}:
        return False
    if name == "read_text":
        return not call.args
    if name == "write_text":
        return len(call.args) < 2
    if name != "open":
        return False
    of_path = isinstance(call.func, ast.Attribute)
    mode = call.args[0 if of_path else 1 :][:1]
    return not mode or (isinstance(mode[0], ast.Constant) and set(str(mode[0].value)) <= set("rwax+"))


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_without_the_modules_of_posix(module: str) -> None:
    absent = sorted(ONE_SYSTEM - {"posix"})  # `os` is built on it here, and numpy asks `os.uname` on Linux
    code = (
        f"import sys\nfor name in {absent!r}: sys.modules[name] = None\n"
        "import os\n"
        f"for name in {sorted(NOT_EVERYWHERE['os'] - {'uname'})!r}:\n    os.__dict__.pop(name, None)\n"
        f"import {module}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Msvcrt:
    """The lock of one byte as Windows has it: it never waits, and says EACCES while another one holds it."""

    LK_NBLCK = 2

    def __init__(self, refused: int) -> None:
        self.refused, self.asked = refused, 0

    def locking(self, descriptor: int, mode: int, n_bytes: int) -> None:
        assert (mode, n_bytes, os.lseek(descriptor, 0, os.SEEK_CUR)) == (self.LK_NBLCK, 1, 0)
        self.asked += 1
        if self.asked <= self.refused:
            raise OSError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize("refused", [0, 1, 3])
def test_a_lock_of_windows_is_asked_until_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    system, waited = Msvcrt(refused), []
    monkeypatch.setattr(locks, "fcntl", None)
    monkeypatch.setattr(locks, "ASKED_AGAIN_S", 0.0)
    monkeypatch.setitem(sys.modules, "msvcrt", system)  # type: ignore[arg-type]
    with locks.locked(tmp_path / "lock", lambda: waited.append(True)):
        assert system.asked == refused + 1
    assert len(waited) == (refused > 0)


@pytest.mark.skipif(locks.fcntl is None, reason="flock(2) is of POSIX")
def test_a_lock_is_waited_for_and_given_back(tmp_path: Path) -> None:
    path, waits, took = tmp_path / "lock", threading.Event(), threading.Event()

    def second() -> None:
        with locks.locked(path, waits.set):
            took.set()

    with locks.locked(path):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(30)
        assert not took.is_set()
    thread.join(30)
    assert took.is_set()


def test_a_lock_leaves_the_content_alone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("somebody's", "utf-8")
    with locks.locked(path):
        pass
    assert path.read_text("utf-8") == "somebody's"


@pytest.mark.parametrize(("kind", "said"), [("link", "is a link"), ("folder", "is a folder")])
def test_a_lock_that_is_no_file_is_refused(tmp_path: Path, kind: str, said: str) -> None:
    path = tmp_path / "lock"
    if kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.mkdir()
    with pytest.raises(ArtifactError, match=said), locks.locked(path):
        pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("number", sorted(locks.NO_LOCKS))
def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(descriptor: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with pytest.raises(ArtifactError, match="no locks"), locks.locked(tmp_path / "lock"):
        pass


@pytest.mark.parametrize("with_pwrite", [True, False])
def test_bytes_land_at_their_place_from_many_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_pwrite: bool
) -> None:
    if not with_pwrite:
        monkeypatch.delattr(os, "pwrite", raising=False)
    n_pieces, n_bytes = 64, 1000
    with (tmp_path / "file").open("wb") as file:
        place = file.fileno()
        pieces = [bytes([number]) * n_bytes for number in range(n_pieces)]
        threads = [
            threading.Thread(target=files.write_at, args=(place, memoryview(piece), number * n_bytes))
            for number, piece in enumerate(pieces)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)


def test_windows_syncs_no_folder_and_opens_files_for_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    real = os.open

    def watched(path: Any, flags: int, *rest: Any) -> int:
        opened.append(flags)
        return real(path, flags, *rest)

    (tmp_path / "file").write_bytes(b"x")
    folder, file = _Windows(tmp_path), _Windows(tmp_path / "file")
    monkeypatch.setattr(files.os, "open", watched)
    monkeypatch.setattr(files.os, "name", "nt")
    files.sync(folder)  # type: ignore[arg-type]
    assert opened == []
    files.sync(file)  # type: ignore[arg-type]
    assert opened == [os.O_RDWR]


class _Windows:
    """A path that stays what it is while `os.name` says another system (pathlib would build paths of that one)."""

    def __init__(self, path: Path) -> None:
        self.path, self.folder = str(path), path.is_dir()

    def __fspath__(self) -> str:
        return self.path

    def is_dir(self) -> bool:
        return self.folder


def test_windows_without_the_right_to_links_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def symlink(*_: Any, **__: Any) -> None:
        error = OSError(errno.EINVAL, "A required privilege is not held by the client")
        error.winerror = files.WITHOUT_RIGHT  # type: ignore[attr-defined]
        raise error

    monkeypatch.setattr(os, "symlink", symlink)
    with pytest.raises(ArtifactError, match="developer mode"):
        files.point(tmp_path / "link", "target")


@pytest.mark.parametrize("lacking", [("resource",), ("resource", "proc")])
def test_what_a_system_does_not_say_is_not_known(monkeypatch: pytest.MonkeyPatch, lacking: tuple[str, ...]) -> None:
    monkeypatch.setattr(process, "resource", None)
    if "proc" in lacking:
        monkeypatch.setattr(process, "STATUS", Path("nowhere"))
        assert process.peak_rss_bytes() == 0
    for name in ("getloadavg", "sysconf", "sched_setaffinity", "sched_getaffinity"):
        monkeypatch.delattr(os, name, raising=False)
    assert process.involuntary_switches() is None
    assert process.memory_bytes() is None
    assert process.load_average() is None
    assert process.cores_to_pin() is None
    process.limit_memory(1)  # and nothing is limited: the next line needs more than a byte
    assert len(bytearray(1000)) == 1000


def test_paths_in_documents_have_forward_slashes() -> None:
    """Names inside artifacts and bundles are POSIX on every system: no `str` of a relative path is written."""
    for path in outside_the_seam():
        text = path.read_text("utf-8")
        assert "str(path.relative_to" not in text, path
        assert "os.sep" not in text, path
