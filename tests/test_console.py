"""The log: nothing when silent, plain lines in a file, bars on a terminal."""

import io

from edgeft.console import silent_log, terminal_log


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
