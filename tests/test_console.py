"""The log: nothing when silent, plain lines in a file, bars on a terminal."""

import io

import pytest

from edgeft.console import silent_log, terminal_log, time_left


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_silence() -> None:
    log = silent_log()
    log.say("not heard")
    with log.progress("train", 3, "steps") as progress:
        progress.update(1, "note")


def test_a_file_gets_plain_lines() -> None:
    stream = io.StringIO()
    log = terminal_log(stream)
    log.say("starting")
    with log.progress("train", 3, "steps") as progress:
        progress.update(1, "loss 2.0")
        log.say("between")
    assert stream.getvalue() == "starting\nbetween\n"  # progress speaks only after ten seconds


@pytest.mark.parametrize(
    ("done", "total", "rate", "said"),
    [
        (7, 144, 0.0134, "2:50:24"),  # a step of 75 seconds: 137 more are 10,224 s
        (64, 100, 0.773, "47 s"),
        (0, 10, 0.0, ""),
        (5, 10, 0.05, "1:40"),
        (11, 10, 1.0, ""),
    ],
)
def test_the_time_left_is_known_however_long_a_step_takes(done: int, total: int, rate: float, said: str) -> None:
    assert time_left(done, total, rate) == said


def test_a_terminal_gets_a_bar() -> None:
    stream = Terminal()
    log = terminal_log(stream)
    with log.progress("train [1]", 3, "steps") as outer:
        outer.update(1, "loss [2.0]")
        log.say("a line with [brackets]")
        with log.progress("evaluate", 2, "examples") as inner:
            inner.update(2)
        outer.update(3)
    log.say("after")
    said = stream.getvalue()
    for words in ("train [1]", "a line with [brackets]", "after"):
        assert words in said
