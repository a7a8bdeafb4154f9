"""What stays of a chat that does not fit: a prompt of one token a character is the oracle."""

from collections.abc import Sequence

import pytest

from edgeft.errors import ContextOverflow, UsageError
from edgeft.runtime import Message, Model
from edgeft.runtime.history import Overflow, fitted

SYSTEM, FIRST, SECOND, LAST = "S" * 4, "a" * 5, "b" * 6, "c" * 7


def message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


CHAT = [
    message("system", SYSTEM),
    message("user", FIRST),
    message("assistant", "A"),
    message("tool", "T"),
    message("user", SECOND),
    message("assistant", "B"),
    message("user", LAST),
]  # 4 | 7 | 7 | 7 = 25 characters


def characters(messages: Sequence[Message]) -> list[int]:
    return [ord(letter) for each in messages for letter in each["content"]]


@pytest.mark.parametrize(
    ("overflow", "n_ctx", "kept"),
    [
        ("error", 29, SYSTEM + FIRST + "AT" + SECOND + "B" + LAST),
        ("error", 25, SYSTEM + FIRST + "AT" + SECOND + "B" + LAST),  # the answer is cut, not the chat
        ("truncate_left", 29, SYSTEM + FIRST + "AT" + SECOND + "B" + LAST),
        ("truncate_left", 28, SYSTEM + SECOND + "B" + LAST),
        ("truncate_left", 22, SYSTEM + SECOND + "B" + LAST),
        ("truncate_left", 21, SYSTEM + LAST),
        ("truncate_left", 11, SYSTEM + LAST),
        ("truncate_middle", 28, SYSTEM + FIRST + "AT" + LAST),
        ("truncate_middle", 18, SYSTEM + FIRST + "AT" + LAST),
    ],
)
def test_turns_that_stay(overflow: Overflow, n_ctx: int, kept: str) -> None:
    messages, prompt = fitted(CHAT, characters, n_ctx=n_ctx, n_new=5, overflow=overflow)
    assert "".join(map(chr, prompt)) == kept
    assert characters(messages) == prompt


@pytest.mark.parametrize(
    ("overflow", "n_ctx"), [("error", 24), ("truncate_left", 10), ("truncate_middle", 17), ("truncate_left", 3)]
)
def test_a_prompt_that_never_fits_is_told(overflow: Overflow, n_ctx: int) -> None:
    with pytest.raises(ContextOverflow, match=rf"does not fit the context of {n_ctx}; shorten it"):
        fitted(CHAT, characters, n_ctx=n_ctx, n_new=5, overflow=overflow)


def test_a_policy_that_is_none_is_told() -> None:
    with pytest.raises(UsageError, match="overflow 'right': choose among error, truncate_left, truncate_middle"):
        fitted(CHAT, characters, n_ctx=9, n_new=1, overflow="right")  # type: ignore[arg-type]


def test_a_chat_that_is_too_long_is_answered_from_what_fits(either: Model) -> None:
    turn = [message("user", "play some music " * 12), message("assistant", "ok")]
    last = message("user", "turn on the light")
    long = [message("system", "be brief"), *turn * 60, last]
    with pytest.raises(ContextOverflow, match="truncate_left"):
        either.chat(long)
    answer = either.chat(long, max_new_tokens=20, overflow="truncate_left")
    n_kept = next(
        n for n in range(60) if either.chat(long[:1] + turn * n + [last], max_new_tokens=1).n_prompt == answer.n_prompt
    )
    expected = either.chat([long[0], *turn * n_kept, last], max_new_tokens=20)
    assert answer.text == expected.text
    assert answer.n_prompt + 19 <= either.n_ctx < answer.n_prompt + 19 + len(either.tokenize(either.render(turn)))
