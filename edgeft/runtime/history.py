"""What of a chat goes into the prompt when not all of it fits."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from edgeft.errors import ContextOverflow, UsageError
from edgeft.runtime.model import Message

Overflow = Literal["error", "truncate_left", "truncate_middle"]
SYSTEM_ROLES = ("system", "developer")

Prompt = list[int]


def fitted(
    messages: Sequence[Message],
    prompt_of: Callable[[Sequence[Message]], Prompt],
    *,
    n_ctx: int,
    n_new: int,
    overflow: Overflow,
) -> tuple[Sequence[Message], Prompt]:
    """The messages to answer and their prompt, by the policy `overflow`.

    A turn is a user's message and all up to the next. Whole turns are left out, as few as make room for the prompt
    and `n_new` tokens: from the oldest (`truncate_left`), or from the second oldest (`truncate_middle`, which keeps
    the one that set the task). Leading system messages and the last turn always stay. Raises ContextOverflow when
    not even the prompt of what stays fits `n_ctx` tokens; with `error` nothing is left out.
    """
    if overflow not in get_args(Overflow):
        raise UsageError(f"overflow {overflow!r}: choose among {', '.join(get_args(Overflow))}")
    prompt = prompt_of(messages)
    if len(prompt) + n_new - 1 > n_ctx and overflow != "error":
        shorter = _shortened(messages, keeps_first=overflow == "truncate_middle")
        # The more turns are left out, the shorter the prompt: the first that fits, or the shortest of all.
        at = bisect_left(shorter, True, key=lambda each: len(prompt_of(each)) + n_new - 1 <= n_ctx)
        if shorter:
            messages = shorter[min(at, len(shorter) - 1)]
            prompt = prompt_of(messages)
    if len(prompt) > n_ctx:
        advice = "shorten it or load the model with a larger n_ctx"
        if overflow == "error":
            advice = f"{advice}, or leave out old turns (overflow='truncate_left')"
        raise ContextOverflow(f"a prompt of {len(prompt)} tokens does not fit the context of {n_ctx}; {advice}")
    return messages, prompt


def n_leading_system(messages: Sequence[Message]) -> int:
    """How many system messages stand first."""
    return next((at for at, each in enumerate(messages) if each.get("role") not in SYSTEM_ROLES), len(messages))


def with_system(messages: Sequence[Message], system: str | None) -> Sequence[Message]:
    """`messages` behind the system message `system`, if there is one and they have none."""
    if not system or n_leading_system(messages):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _shortened(messages: Sequence[Message], *, keeps_first: bool) -> list[list[Message]]:
    """`messages` with one turn less, two, …, down to those that always stay."""
    n_system = n_leading_system(messages)
    turns: list[list[Message]] = []
    for message in messages[n_system:]:
        if message.get("role") == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    first = 1 if keeps_first else 0
    stays = [*messages[:n_system], *(each for turn in turns[:first] for each in turn)]
    return [[*stays, *(each for turn in turns[at:] for each in turn)] for at in range(first + 1, len(turns))]
