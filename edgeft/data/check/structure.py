"""Is this row a conversation that can be learned from? Works on any JSON value and never raises."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from edgeft.conversation.canonical import canonical_row, is_older, padded_place
from edgeft.data.check.tools import tool_problems
from edgeft.data.formats.common import ROLES

Problem = tuple[str, str]


def plain_turns(row: dict[str, Any]) -> tuple[tuple[str, ...], list[str]] | None:
    """Roles and texts of a conversation whose messages hold a known role, a text that is not blank, and nothing
    more; None for any other. Most lines of most files are such, and nothing but the order of roles can be wrong."""
    if "tools" in row or "rejected" in row:
        return None
    messages = row.get("messages")
    if type(messages) is not list or not messages:
        return None
    try:
        roles = tuple([message["role"] for message in messages])
        texts = [message["content"] for message in messages]
        for message, text in zip(messages, texts, strict=True):
            if len(message) != 2 or type(text) is not str or not text or text.isspace():
                return None
        return (roles, texts) if role_problems(roles) is not None and "tool" not in roles else None
    except (KeyError, TypeError):  # no object, a key missing, a role that cannot be hashed
        return None


@lru_cache(maxsize=4096)
def role_problems(roles: tuple[str, ...]) -> tuple[Problem, ...] | None:
    """What is wrong with the order of roles; None when one of them is unknown."""
    return tuple(_order_problems(list(roles))) if all(role in ROLES for role in roles) else None


def newer_row(row: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The row with its tool data in the one form, which is what is learned from, and what form it had."""
    try:
        found = [(code, where) for code, where in (("I313", is_older(row)), ("W314", padded_place(row))) if where]
        return (canonical_row(row) if found else row), found
    except RecursionError:
        return row, [("E101", "nested too deeply")]


def conversation_problems(row: dict[str, Any]) -> list[Problem]:
    """(code, detail) of everything wrong with the shape of a canonical row."""
    messages = row.get("messages")
    if not isinstance(messages, list):
        return [("E201", "")]
    if not messages:
        return [("E202", "")]
    problems: list[Problem] = []
    roles: list[str] = []
    has_calls = False
    for at, message in enumerate(messages):
        if not isinstance(message, dict):
            problems.append(("E203", f"messages[{at}]"))
            continue
        role = message.get("role")
        if role not in ROLES:
            problems.append(("E204", f"messages[{at}].role is {str(role)[:40]!r}"))
            continue
        roles.append(role)
        calls = message.get("tool_calls")
        has_calls = has_calls or bool(calls) or role == "tool"
        content = message.get("content")
        if not isinstance(content, str) or not content or content.isspace():
            problems += _content_problems(content, role, at, bool(calls))
        if "weight" in message and (type(message["weight"]) is bool or message["weight"] not in (0, 1)):
            problems.append(("E215", f"messages[{at}].weight is {str(message['weight'])[:20]}"))
    if len(roles) == len(messages):
        problems += role_problems(tuple(roles)) or ()
        answers = [message for message in messages if message["role"] == "assistant"]
        if answers and all(type(answer.get("weight")) is int and answer["weight"] == 0 for answer in answers):
            problems.append(("E216", ""))
        if has_calls or "tools" in row:
            problems += tool_problems(row, messages)
    if "rejected" in row:
        problems += _rejected_problems(row, messages)
    return problems


def _content_problems(content: Any, role: str, at: int, has_calls: bool) -> Iterator[Problem]:
    where = f"messages[{at}].content"
    if isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in ("text", "refusal", "input_text", "output_text"):
                yield ("E206", f"{where}: {str(kind)[:30]}") if kind else ("E205", where)
            elif not isinstance(part.get("text", part.get("refusal")), str):
                yield "E205", f"{where}: a text part without text"
        if content:
            return
    elif content is not None and not isinstance(content, str):
        yield "E205", f"{where} is {type(content).__name__}"
        return
    if role == "assistant" and has_calls:
        return
    if content is None:
        yield "E205", f"{where} is missing"
    elif role == "assistant":
        yield "E213", where
    elif role == "user":
        yield "E212", where
    elif role != "tool":
        yield "W214", where


def _order_problems(roles: list[str]) -> Iterator[Problem]:
    if "assistant" not in roles:
        yield "E207", ""
    elif roles[-1] != "assistant":
        yield "E208", f"it is the {roles[-1]}'s"
    systems = [at for at, role in enumerate(roles) if role in ("system", "developer")]
    if systems and systems[-1] > 0:
        if systems[0] == 0 and systems == list(range(len(systems))):
            yield "E217", f"{len(systems)} of them"
        else:
            yield "E209", f"messages[{systems[-1]}]"
    before = ""
    for at, role in enumerate(roles):
        if role == before and role in ("user", "assistant"):
            yield "W210", f"messages[{at}] is {role} again"
            break
        before = role
    talk = [role for role in roles if role in ("user", "assistant")]
    if talk and talk[0] == "assistant" and "user" in talk:
        yield "W211", ""


def _rejected_problems(row: dict[str, Any], messages: list[Any]) -> Iterator[Problem]:
    rejected = row["rejected"]
    if not isinstance(rejected, list) or not rejected or not all(isinstance(turn, dict) for turn in rejected):
        yield "E802", ""
        return
    last = rejected[-1]
    if last.get("role") != "assistant":
        yield "E803", ""
    elif not last.get("tool_calls") and (not isinstance(last.get("content"), str) or not last["content"].strip()):
        yield "E802", ""
    elif messages[-len(rejected) :] == rejected:
        yield "E801", ""
