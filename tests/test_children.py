"""Programs that die, hang or talk nonsense, and what is left of them afterwards."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeft.children import Child, ask_once, how_it_ended, run_to_end
from edgeft.errors import EdgeftError, ModelError, RuntimeFault

LIMIT_S = 60.0
"""Only reached when something is wrong."""


def python(code: str, *words: str) -> list[str]:
    return [sys.executable, "-c", f"import json, os, signal, subprocess, sys, time\n{code}", *words]


ENDINGS = [
    ("os.kill(os.getpid(), signal.SIGABRT)", RuntimeFault, "it was killed by SIGABRT"),
    ("os.kill(os.getpid(), signal.SIGILL)", RuntimeFault, "SIGILL .*this library was compiled for another processor"),
    ("os.kill(os.getpid(), signal.SIGKILL)", RuntimeFault, "SIGKILL .*memory ran out"),
    ("print('ASSERT', file=sys.stderr, flush=True); os.kill(os.getpid(), 11)", RuntimeFault, "(?s)SIGSEGV\n.*ASSERT"),
    ("sys.exit(7)", RuntimeFault, "it ended with exit code 7"),
    ("print('Segmentation')", RuntimeFault, "answered b'Segmentation.*not JSON"),
    ("print('[1]')", RuntimeFault, "not a JSON object"),
]
ONCE = [
    ("", RuntimeFault, "it ended without an answer"),
    ("""print('{"rate": 1}')""", RuntimeFault, "it answered without noisy"),
    ("""print('{"error": "ModelError", "message": "no weights"}')""", ModelError, "^no weights$"),
    ("""print('{"error": "Any", "message": "odd"}')""", RuntimeFault, "it reported Any: odd"),
]
TALKS = [
    ("", RuntimeFault, "it ended with exit code 0"),
    ("""print('{"event": "error", "kind": "ModelError", "message": "no weights"}')""", ModelError, "^no weights$"),
    ("""print('{"event": "error"}')""", RuntimeFault, "it reported None: None"),
]


@pytest.mark.parametrize(("code", "error", "said"), [*ENDINGS, *ONCE])
def test_a_question_that_gets_no_answer(code: str, error: type[EdgeftError], said: str) -> None:
    with pytest.raises(error, match=said) as raised:
        ask_once(python(code), "it", LIMIT_S, fields={"rate", "noisy"})
    assert type(raised.value) is error


@pytest.mark.parametrize(("code", "error", "said"), [*ENDINGS, *TALKS])
def test_a_conversation_that_ends(code: str, error: type[EdgeftError], said: str) -> None:
    with pytest.raises(error, match=said), Child(python(code), "it", LIMIT_S) as child:
        child.ask({})


def test_a_question_is_answered() -> None:
    """Libraries may talk before the answer; the order comes on stdin, however long it is."""
    code = "print('loading'); print(json.dumps({'n': len(json.load(sys.stdin)['text']), 'x': os.environ['X']}))"
    found = ask_once(python(code), "it", LIMIT_S, order={"text": "a" * 300_000}, environment={"X": "7"})
    assert found == {"n": 300_000, "x": "7"}


def test_a_conversation_goes_on() -> None:
    code = "for line in sys.stdin: print(json.dumps({'event': 'said', 'n': json.loads(line)['n'] + 1}), flush=True)"
    with Child(python(code), "it", LIMIT_S) as child:
        assert [child.ask({"n": n})["n"] for n in (1, 5)] == [2, 6]


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(RuntimeFault, match="it cannot be started: there is no program no-such-program"):
        run_to_end(["no-such-program"], "it", timeout_s=LIMIT_S)


def test_a_program_that_fails_is_the_callers_to_judge() -> None:
    done = run_to_end(python("print('a'); print('b\\rc', file=sys.stderr); sys.exit(3)"), "it", timeout_s=LIMIT_S)
    assert (done.code, done.stdout, done.last_lines()) == (3, b"a\n", ["c"])


def test_lines_are_heard_as_they_come() -> None:
    """The child ends only after its first line was heard, or never."""
    reads, writes = os.pipe()
    heard: list[str] = []

    def hear(line: str) -> None:
        heard.append(line)
        os.write(writes, b".")

    code = f"print('1 %\\r2 %', file=sys.stderr); open('/proc/{os.getpid()}/fd/{reads}').read(1); sys.stderr.write('e')"
    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc")
    run_to_end(python(code), "it", timeout_s=LIMIT_S, heard=hear)
    assert heard == ["2 %", "e"]


def test_unknown_signals_have_numbers() -> None:
    assert how_it_ended(-100) == "was killed by signal 100"


GRANDCHILD = "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
WRITES_PIDS = GRANDCHILD + "open(sys.argv[1], 'w').write(f'{os.getpid()} {child.pid} ')\n"


def ask(command: list[str]) -> Any:
    ask_once(command, "it", 1.0)


def talk(command: list[str]) -> Any:
    with Child(command, "it", 1.0) as child:
        child.ask({})


def wait_in_silence(command: list[str]) -> Any:
    run_to_end(command, "it", silence_s=1.0)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (ask, "it did not end within 1 s; it hangs, or this machine is too busy"),
        (talk, "it said nothing for 1 s; it hangs, or this machine is too busy"),
        (wait_in_silence, "it said nothing for 1 s; it hangs"),
    ],
)
def test_what_hangs_is_ended_with_all_it_started(call: Callable[[list[str]], Any], said: str, tmp_path: Path) -> None:
    """On a machine too busy to start the child within a second there is nothing to be ended."""
    with pytest.raises(RuntimeFault, match=said):
        call(python(WRITES_PIDS + "time.sleep(600)", str(tmp_path / "pids")))
    assert all_gone(tmp_path / "pids")


def test_what_leaves_a_program_behind(tmp_path: Path) -> None:
    """It holds the pipe of its parent, which has ended: it is killed, and nobody waits for it."""
    done = run_to_end(python(WRITES_PIDS + "print('made')", str(tmp_path / "pids")), "it", timeout_s=LIMIT_S)
    assert (done.code, done.stdout) == (0, b"made\n")
    assert all_gone(tmp_path / "pids")


PARENT = """
import sys
sys.path.insert(0, sys.argv[1])
from edgeft.children import Child
with Child([sys.executable, "-c", sys.argv[2], sys.argv[3]], "it", 600) as child:
    child.ask({})
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_children_end_with_their_parent(number: signal.Signals, tmp_path: Path, repo_root: Path) -> None:
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux kills the children of a parent that was killed")
    code = f"import os, sys, time\nopen({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} ')\ntime.sleep(600)"
    command = [sys.executable, "-c", PARENT, str(repo_root), code, "x"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as parent:
        wait_until(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text().endswith(" "))
        parent.send_signal(number)
        parent.wait(LIMIT_S)
    assert all_gone(tmp_path / "pids")


def all_gone(pids: Path) -> bool:
    for pid in pids.read_text().split() if pids.exists() else ():
        wait_until(lambda pid=pid: not runs(int(pid)))  # type: ignore[misc]
    return True


def runs(pid: int) -> bool:
    """A zombie that nobody has collected is gone."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        if stat.exists():
            return stat.read_text().rpartition(")")[2].split()[0] != "Z"
        os.kill(pid, 0)
    except (OSError, ProcessLookupError):
        return False
    return not Path("/proc/self").exists()


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(int(LIMIT_S / 0.05)):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it never came")
