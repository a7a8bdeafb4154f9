"""Halves of surrogate pairs: what is left of an emoji that was cut in two. No UTF-8 file can hold one."""

import re
from collections.abc import Mapping
from typing import Any

SURROGATE = re.compile("[\ud800-\udfff]")
MAX_DEPTH = 64
"""Levels of lists and objects in one line. JSON Schemas of tools have about ten."""


def half_character(text: str) -> str:
    """What is wrong with `text`, or an empty text."""
    found = SURROGATE.search(text)
    return f"half of a surrogate pair, U+{ord(found.group()):04X}" if found else ""


def unusable_place(value: Any, place: str = "", depth: int = 0) -> str:
    """The first place of a JSON value that holds half a character or is nested too deeply, and which; else ""."""
    if isinstance(value, str):
        half = half_character(value)
        return f"{place or 'the line'} holds {half}" if half else ""
    if not isinstance(value, (Mapping, list)):
        return ""
    if depth >= MAX_DEPTH:
        return f"{place[:80]} is nested more than {MAX_DEPTH} levels deep"
    if isinstance(value, list):
        inner = ((f"{place}[{at}]", one) for at, one in enumerate(value))
    else:
        if half := next(filter(None, map(half_character, value)), ""):
            return f"a name in {place or 'the line'} holds {half}"
        inner = ((f"{place}.{name}" if place else str(name), one) for name, one in value.items())
    return next(filter(None, (unusable_place(one, where, depth + 1) for where, one in inner)), "")
