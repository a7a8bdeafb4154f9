"""The one way to run other programs: what dies, hangs or talks nonsense becomes an error that says so.

`Child` is a conversation (one JSON line there, one JSON line back), `ask_once` one question and one answer, and
`run_to_end` any program. Three rules hold for all of them:

- A child is never waited for without a limit.
- A child never outlives this process. On Linux the kernel kills it when the thread that started it ends, even when
  that thread was killed itself (prctl(2), PR_SET_PDEATHSIG). Elsewhere a conversation ends when its stdin closes.
- A child has a process group of its own. After a time limit, an error or Ctrl-C the whole group is killed.
"""

import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, NoReturn, Self

from edgeft import errors
from edgeft.errors import EdgeftError, RuntimeFault
from edgeft.machine.process import kill_group, signal_name

LAST_LINES = 5
POLL_S = 0.2
GRACE_S = 2.0
"""How long a pipe may stay open after its process has ended, before it is left to whoever still holds it."""
MOST_BYTES = 256 << 20
"""Of output. A program that says more is out of its mind."""
END_WITH_PARENT = """
import ctypes, os, sys
parent = int(sys.argv[1])
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != parent:
    sys.exit(1)
try:
    os.execv(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]} cannot be started: {error.strerror}")
"""
"""Becomes the program itself, with the wish to be killed when the parent ends. Done here and not between fork and
exec: code there can deadlock in a process with threads."""
MEANINGS = {
    "SIGILL": "an instruction that this processor does not have: this library was compiled for another processor; "
    "install it again on this machine",
    "SIGKILL": "most often by the system, because memory ran out",
}


@dataclass(frozen=True)
class Finished:
    """A program that ended by itself: its exit code and what it wrote."""

    code: int
    stdout: bytes
    stderr: bytes

    def last_lines(self, count: int = LAST_LINES) -> list[str]:
        """The end of what it wrote to stderr, or to stdout where it wrote nothing there."""
        return _last_lines(self.stderr, count) or _last_lines(self.stdout, count)


class Child:
    """A running child that answers orders, used in a `with` block: after the block it is gone.

    `what` names it in error messages ("model.gguf: the runtime"). A child that does not answer within `silence_s`
    seconds hangs. An answer `{"event": "error", "kind": "ModelError", "message": "..."}` is raised here as that class
    of `edgeft.errors`. What it writes to stderr is quoted when it dies.
    """

    def __init__(self, command: Sequence[str], what: str, silence_s: float) -> None:
        self.what, self.silence_s = what, silence_s
        self._talk = tempfile.TemporaryFile()  # noqa: SIM115  closed in __exit__
        self._process = _start(command, what, stdin=subprocess.PIPE, stderr=self._talk)
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Send `order` and wait for the answer.

        Raises RuntimeFault when the child dies (naming the signal), hangs or does not answer in JSON, and
        whatever error the child reports.
        """
        self.send(order)
        return self.answer()

    def send(self, order: Mapping[str, Any]) -> None:
        """Send `order`; `answer` waits for what comes back."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # a child that died is reported by `answer`
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The next answer. Raises as `ask` does."""
        try:
            line = self._lines.get(timeout=self.silence_s)
        except queue.Empty:
            raise RuntimeFault(f"{self.what} said nothing for {_silence(self.silence_s)}") from None
        if line is None:
            raise RuntimeFault(f"{self.what} {self._death()}{_quoted(self._last_words())}")
        event = _object(line, self.what)
        if event.get("event") == "error":
            _raise_reported(event.get("kind"), event.get("message"), self.what)
        return event

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _kill(self._process)
        self._reader.join(GRACE_S)
        for stream in (self._process.stdin, self._talk):
            with contextlib.suppress(BrokenPipeError):  # an order nobody read
                stream.close()  # type: ignore[union-attr]
        if not self._reader.is_alive():
            self._process.stdout.close()  # type: ignore[union-attr]

    def _read(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        for line in stream:
            self._lines.put(line)
        self._lines.put(None)

    def _death(self) -> str:
        try:
            return how_it_ended(self._process.wait(timeout=self.silence_s))
        except subprocess.TimeoutExpired:
            return "closed its output and hangs"

    def _last_words(self) -> list[str]:
        self._talk.seek(0)
        return _last_lines(self._talk.read(), LAST_LINES)


def ask_once(
    command: Sequence[str],
    what: str,
    timeout_s: float,
    *,
    order: Mapping[str, Any] | None = None,
    fields: AbstractSet[str] = frozenset(),
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What a program answers: the JSON object in the last line of its stdout, with at least the keys `fields`.

    `order` goes to its stdin as JSON, `environment` is added to that of this process. An answer
    `{"error": "ModelError", "message": "..."}` is raised here as that class of `edgeft.errors`. Raises RuntimeFault
    when the program cannot be started, dies, takes longer than `timeout_s` seconds or answers something else.
    """
    stdin = b"" if order is None else json.dumps(order).encode()
    done = run_to_end(command, what, timeout_s=timeout_s, stdin=stdin, environment=environment)
    if done.code:
        raise RuntimeFault(f"{what} {how_it_ended(done.code)}{_quoted(done.last_lines())}")
    lines = done.stdout.strip().splitlines()
    if not lines:
        raise RuntimeFault(f"{what} ended without an answer{_quoted(done.last_lines())}")
    answer = _object(lines[-1], what)
    if "error" in answer:
        _raise_reported(answer["error"], answer.get("message"), what)
    if not fields <= answer.keys():
        raise RuntimeFault(f"{what} answered without {', '.join(sorted(fields - answer.keys()))}")
    return answer


def run_to_end(
    command: Sequence[str],
    what: str,
    *,
    timeout_s: float | None = None,
    silence_s: float | None = None,
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
    heard: Callable[[str], None] | None = None,
) -> Finished:
    """Run a program to its end, `environment` added to that of this process; its exit code is the caller's to judge.

    One limit at least has to be given: `timeout_s` seconds in all, or `silence_s` seconds without output. `heard`
    gets each line of stderr as it comes. Raises RuntimeFault when there is no such program, when a signal kills it,
    or when a limit is passed; what was started is dead then.
    """
    assert timeout_s is not None or silence_s is not None, "a child without a limit"
    with tempfile.TemporaryFile() as orders:
        orders.write(stdin)
        orders.seek(0)
        process = _start(command, what, stdin=orders, stderr=subprocess.PIPE, environment=environment)
    try:
        said = _Said(process, heard)
        _await(said, what, timeout_s, silence_s)
        code = process.wait()
    finally:
        _kill(process)
    if code < 0:
        raise RuntimeFault(f"{what} {how_it_ended(code)}{_quoted(_last_lines(said.stderr, LAST_LINES))}")
    return Finished(code, bytes(said.stdout), bytes(said.stderr))


def how_it_ended(code: int) -> str:
    """What a return code of `subprocess` says of the end: "was killed by SIGABRT", "ended with exit code 3"."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal_name(-code)
    return f"was killed by {name}" + (f" ({MEANINGS[name]})" if name in MEANINGS else "")


class _Said:
    """What a process has written so far; two threads listen."""

    def __init__(self, process: "subprocess.Popen[bytes]", heard: Callable[[str], None] | None) -> None:
        self.process, self.heard = process, heard
        self.stdout, self.stderr = bytearray(), bytearray()
        self._chunks: queue.Queue[tuple[bytearray, bytes]] = queue.Queue()
        self._n_open, self._told = 2, 0
        for stream, kept in ((process.stdout, self.stdout), (process.stderr, self.stderr)):
            threading.Thread(target=self._listen, args=(stream, kept), daemon=True).start()

    def _listen(self, stream: Any, kept: bytearray) -> None:
        with stream:
            while chunk := stream.read1(1 << 16):
                self._chunks.put((kept, chunk))
        self._chunks.put((kept, b""))

    def more(self) -> Iterator[bool]:
        """Whether something came within POLL_S seconds, again and again until both streams are closed."""
        while self._n_open:
            try:
                kept, chunk = self._chunks.get(timeout=POLL_S)
            except queue.Empty:
                yield False
                continue
            kept += chunk
            self._n_open -= not chunk
            if kept is self.stderr and self.heard is not None:
                self._tell(self.heard, len(kept) if not chunk else kept.rfind(b"\n") + 1)
            yield True

    def _tell(self, heard: Callable[[str], None], end: int) -> None:
        """Hand on the lines up to byte `end`; of a line that a bar overwrites (`\\r`) its last state."""
        for line in self.stderr[self._told : end].decode(errors="replace").split("\n"):
            if words := line.rstrip().rpartition("\r")[2]:
                heard(words)
        self._told = max(self._told, end)


def _await(said: _Said, what: str, timeout_s: float | None, silence_s: float | None) -> None:
    """Listen until the process has ended and its pipes are closed."""
    started = heard = time.monotonic()
    ended: float | None = None
    for came in said.more():
        now = time.monotonic()
        heard = now if came else heard
        if timeout_s is not None and now - started > timeout_s:
            raise RuntimeFault(
                f"{what} did not end within {timeout_s:g} s; it hangs, or this machine is too busy"
                f"{_quoted(_last_lines(said.stderr, LAST_LINES))}"
            )
        if silence_s is not None and now - heard > silence_s:
            raise RuntimeFault(
                f"{what} said nothing for {_silence(silence_s)}{_quoted(_last_lines(said.stderr, LAST_LINES))}"
            )
        if len(said.stdout) + len(said.stderr) > MOST_BYTES:
            raise RuntimeFault(f"{what} wrote more than {MOST_BYTES >> 20} MB of output; it was stopped")
        if not came and said.process.poll() is not None:
            ended = ended or now
            if now - ended > GRACE_S:  # something it started holds the pipe
                return


def _start(
    command: Sequence[str],
    what: str,
    *,
    stdin: int | IO[bytes],
    stderr: int | IO[bytes],
    environment: Mapping[str, str] | None = None,
) -> "subprocess.Popen[bytes]":
    program = shutil.which(command[0])
    if program is None:
        raise RuntimeFault(f"{what} cannot be started: there is no program {command[0]}")
    words = [program, *command[1:]]
    if sys.platform == "linux":
        words = [sys.executable, "-I", "-S", "-c", END_WITH_PARENT, str(os.getpid()), *words]
    return subprocess.Popen(
        words,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={**os.environ, **(environment or {})},
        start_new_session=sys.platform != "win32",
    )


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill the process and all it started, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        kill_group(process)
    process.wait()


def _object(line: bytes, what: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except ValueError:
        raise RuntimeFault(f"{what} answered {line[:80]!r}, which is not JSON") from None
    if not isinstance(content, dict):
        raise RuntimeFault(f"{what} answered {line[:80]!r}, which is not a JSON object")
    return content


def _raise_reported(kind: object, message: object, what: str) -> NoReturn:
    found = getattr(errors, str(kind), None)
    known = isinstance(found, type) and issubclass(found, EdgeftError)
    raise (found if known else RuntimeFault)(str(message) if known else f"{what} reported {kind}: {message}")  # type: ignore[misc]


def _silence(silence_s: float) -> str:
    return f"{silence_s:g} s; it hangs, or this machine is too busy"


def _last_lines(talk: bytes | bytearray, count: int) -> list[str]:
    lines = [line.rpartition("\r")[2] for line in talk.decode(errors="replace").replace("\r\n", "\n").split("\n")]
    return [line for line in lines if line.strip()][-count:]


def _quoted(lines: Sequence[str]) -> str:
    return "".join(f"\n  {line}" for line in lines)
