"""A conversation with a child process that may crash or hang: one JSON line there, one JSON line back.

The child gets orders on stdin and answers on stdout; what it writes to stderr is quoted when it dies. An answer
`{"event": "error", "kind": "ModelError", "message": "..."}` is raised here as that class of `edgeft.errors`.
"""

import contextlib
import json
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, Any, Self

from edgeft import errors
from edgeft.errors import RuntimeFault

LAST_LINES = 5


class Child:
    """A running child that answers orders; used in a `with` block, behind which it no longer runs.

    `what` names its work in error messages; a child that does not answer within `silence_s` seconds hangs.
    """

    def __init__(self, command: Sequence[str], what: str, silence_s: float) -> None:
        self.what, self.silence_s = what, silence_s
        self._talk = tempfile.TemporaryFile()  # noqa: SIM115  closed in __exit__
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._talk)
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
            raise RuntimeFault(f"{self.what}: the runtime said nothing for {self.silence_s:g} s; it hangs") from None
        if line is None:
            raise RuntimeFault(f"{self.what}: {self._death()}{self._last_words()}")
        try:
            event: dict[str, Any] = json.loads(line)
        except ValueError:
            raise RuntimeFault(f"{self.what}: the child answered {line[:80]!r}, which is not JSON") from None
        if event.get("event") == "error":
            raise getattr(errors, event["kind"], RuntimeFault)(event["message"])
        return event

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._talk):
            with contextlib.suppress(BrokenPipeError):  # an order nobody read
                stream.close()  # type: ignore[union-attr]

    def _read(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        for line in stream:
            self._lines.put(line)
        self._lines.put(None)

    def _death(self) -> str:
        try:
            code = self._process.wait(timeout=self.silence_s)
        except subprocess.TimeoutExpired:
            return "the runtime closed its output and hangs"
        if code < 0:
            return f"the runtime was killed by {_signal_name(-code)}"
        return f"the runtime's process ended with exit code {code}"

    def _last_words(self) -> str:
        return "".join(f"\n  {line}" for line in _last_lines(self._talk))


def _last_lines(talk: IO[bytes]) -> list[str]:
    talk.seek(0)
    return [line for line in talk.read().decode(errors="replace").splitlines() if line.strip()][-LAST_LINES:]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
