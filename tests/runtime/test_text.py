"""Text while it is made: Python's own split and decode are the oracle."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeft.errors import UsageError
from edgeft.runtime import Model
from edgeft.runtime.text import TextStream

TEXTS = ["déjà vu 😀👍🏽 12", "日本語の文", "a\n\n  b\tc", "x�y", "👩‍👩‍👧‍👦 done"]


def decode(ids: Sequence[int]) -> str:
    """Ids are bytes."""
    return bytes(ids).decode(errors="replace")


def run(ids: Sequence[int], stops: Sequence[str]) -> tuple[list[str], TextStream]:
    text = TextStream(decode, stops)
    pieces = []
    for token in ids:
        pieces.append(text.push(token))
        if text.stopped:
            return pieces, text
    return [*pieces, text.flush()], text


@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_the_pieces_are_the_text_before_the_first_stop(whole: str, stops: list[str]) -> None:
    pieces, text = run(whole.encode(errors="replace"), stops)
    whole = whole.encode(errors="replace").decode()
    ends = [whole.find(stop) for stop in stops if stop in whole]
    # A stop text that is whole earlier ends the answer, whatever another one would still become.
    done = [whole.find(stop) + len(stop) for stop in stops if stop in whole]
    if done:
        before = whole[: min(done)]
        ends = [before.find(stop) for stop in stops if stop in before]
    expected = whole[: min(ends)] if ends else whole
    assert "".join(pieces) == text.text == expected
    assert text.stopped == bool(ends)


def test_what_may_become_a_stop_text_is_held_back() -> None:
    text = TextStream(decode, ["<end>", "e!"])
    shown = [text.push(byte) for byte in b"see<en<end"]
    assert shown == ["s", "", "e", "e", "", "", "<en", "", "", ""]
    assert text.push(ord(">")) == ""
    assert (text.text, text.stopped, text.flush()) == ("see<en", True, "")


def test_half_a_character_is_held_back_and_shown_at_the_end() -> None:
    pieces, text = run("é😀".encode()[:-1], [])
    assert pieces == ["", "é", "", "", "", "�"]
    assert text.text == "é�"


@pytest.mark.parametrize("whole", TEXTS)
def test_a_real_vocabulary_gives_the_same_text_in_pieces(either: Model, whole: str) -> None:
    ids = either.tokenize(whole)
    text = TextStream(either.detokenize, [])
    assert "".join([*map(text.push, ids), text.flush()]) == whole == either.detokenize(ids)


def test_a_single_text_is_one_stop_and_an_empty_one_is_refused() -> None:
    assert run(b"abcd", "bc")[1].text == "a"
    with pytest.raises(UsageError, match="stop: an empty text"):
        TextStream(decode, ["x", ""])
