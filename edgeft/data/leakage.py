"""Test examples that are learned from as well: a score on them says what the model remembers, not what it can."""

from collections.abc import Sequence

from edgeft.data.chat import SHOWN_PROBLEMS, Example, conversation_key
from edgeft.errors import DataError
from edgeft.sections import Data

LEAK = "E503"


def check_leakage(section: Data, train: Sequence[Example], test: Sequence[Example]) -> int:
    """Number of test examples that stand, with their answers, among the training examples.

    Raises DataError with file and line of both, unless `data.allow` has E503.
    """
    learned: dict[str, Example] = {}
    for example in train:
        learned.setdefault(_key(example), example)
    leaks = [(example, twin) for example in test if (twin := learned.get(_key(example))) is not None]
    if leaks and LEAK not in section.allow:
        shown = [
            f"{example.path}:{example.line}: {LEAK} the same example in another split ({twin.path}:{twin.line})"
            for example, twin in leaks[:SHOWN_PROBLEMS]
        ]
        if len(leaks) > SHOWN_PROBLEMS:
            shown.append(f"… and {len(leaks) - SHOWN_PROBLEMS} more")
        raise DataError(
            "\n".join(shown) + f"\n{len(leaks)} of {len(test)} test examples are learned from as well, so their score "
            "would say nothing of new ones. Take them out of one file, or set data.dedupe: exact, which leaves them "
            f"out of the training; to go on all the same, set data.allow: [{LEAK}]"
        )
    return len(leaks)


def _key(example: Example) -> str:
    calls = [message["tool_calls"] for message in example.messages if message.get("tool_calls")]
    return conversation_key(example.messages) + (f"\x1d{calls}" if calls else "")
