"""JSON as models write it: parsed strictly, compared as values."""

import json
from collections import Counter
from typing import Any

INVALID = object()  # stands for a text that is no JSON; None is a JSON value
MAX_DEPTH = 100


def parse_json(text: str) -> Any:
    """The JSON value in `text` by RFC 8259, or INVALID.

    Also invalid, as section 9 and 4 of the RFC let a parser say: more than MAX_DEPTH levels, a name used
    twice in one object.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique_names, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return INVALID
    return INVALID if _deeper_than(value, MAX_DEPTH) else value


def json_fields(value: Any) -> Counter[tuple[str, tuple[str, Any]]]:
    """The leaves of a JSON value as a multiset of (path, (type, value)).

    {"a": {"b": 1}, "c": [2, 3]} has the leaves a.b = 1, c[] = 2 and c[] = 3: elements of arrays carry no
    index, so the order in arrays is free (and fields of objects inside an array are not tied to each other;
    json_match is the strict metric). An empty object or array is a leaf itself. Numbers are equal when their
    values are, texts when every character is.
    """
    return Counter(_leaves(value, ""))


def parse_container(text: str) -> Any:
    """The JSON object or array in `text`, or INVALID."""
    value = parse_json(text)
    return value if isinstance(value, dict | list) else INVALID


def canonical(value: Any) -> Any:
    """A form in which equality is equality as JSON: true is not 1, order of names is lost."""
    if isinstance(value, dict):
        return ("object", frozenset((name, canonical(child)) for name, child in value.items()))
    if isinstance(value, list):
        return ("array", tuple(canonical(child) for child in value))
    return _typed(value)


def _deeper_than(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        groups = (item.values() if isinstance(item, dict) else item for item in _containers(level))
        level = [child for group in groups for child in group]
    return bool(_containers(level))


def _containers(values: list[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, dict | list)]


def _leaves(value: Any, path: str) -> list[tuple[str, tuple[str, Any]]]:
    if value is INVALID:
        return []
    if isinstance(value, dict) and value:
        # A name is quoted when a dot or bracket in it could be taken for structure.
        steps = [(json.dumps(name) if set(name) & set('.[]"') else name, child) for name, child in value.items()]
        return [leaf for name, child in steps for leaf in _leaves(child, f"{path}.{name}" if path else name)]
    if isinstance(value, list) and value:
        return [leaf for child in value for leaf in _leaves(child, f"{path}[]")]
    return [(path, _typed(value))]


def _typed(value: Any) -> tuple[str, Any]:
    if isinstance(value, bool) or value is None:
        return ("constant", str(value))
    if isinstance(value, int | float):
        return ("number", value)
    if isinstance(value, dict | list):
        return ("empty", type(value).__name__)
    return ("string", value)


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("a name is used twice in one object")
    return names


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
