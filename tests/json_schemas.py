"""Twenty JSON Schemas as applications use them: nested, enums, arrays, optional fields, unicode. Every string and
array is bounded, so that a model that would never stop by itself comes to an end."""

from typing import Any


def text(longest: int = 12, **more: Any) -> dict[str, Any]:
    return {"type": "string", "maxLength": longest, **more}


def record(*optional: str, **fields: Any) -> dict[str, Any]:
    """An object of these fields and no others; all but `optional` are required."""
    required = [name for name in fields if name not in optional]
    return {"type": "object", "properties": fields, "required": required, "additionalProperties": False}


def several(items: Any, longest: int = 3, shortest: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": shortest, "maxItems": longest}


NUMBER = {"type": "integer", "minimum": 0, "maximum": 999}
SIGNED = {"type": "number", "minimum": -90, "maximum": 90, "multipleOf": 0.25}
FLAG = {"type": "boolean"}
SCHEMAS: dict[str, dict[str, Any]] = {
    "text": text(20),
    "integer": NUMBER,
    "enum": {"enum": ["on", "off", None, 3, False]},
    "const": record(version={"const": 2}, ok={"const": True}),
    "flat object": record(name=text(), age=NUMBER, member=FLAG),
    "optional fields": record("note", "tags", id=NUMBER, note=text(), tags=several(text(6))),
    "all optional": record("a", "b", "c", a=FLAG, b=NUMBER, c=text(4)),
    "nested": record(user=record(name=text(), home=record("zip", street=text(), zip=text(5)))),
    "deep": record(a=record(b=record(c=record(d=record(e={"enum": ["x", "y"]}))))),
    "array of integers": several(NUMBER, 6, 1),
    "array of objects": several(record(item=text(8), count=NUMBER), 3, 1),
    "array of arrays": several(several(FLAG, 2, 2), 2, 1),
    "tuple": {"type": "array", "prefixItems": [text(5), NUMBER, FLAG], "items": False, "minItems": 3},
    "unicode": record(größe={"enum": ["klein", "groß", "日本", "😀"]}, имя=text(6)),
    "escapes": {"enum": ['a "quoted" word', "back\\slash", "tab\tand\nline"]},
    "tool call": record(
        tool={"enum": ["lights", "music"]},
        arguments=record("level", room=text(10), state={"enum": ["on", "off"]}, level=NUMBER),
    ),
    "one of two objects": {
        "anyOf": [
            record(kind={"const": "timer"}, minutes=NUMBER),
            record(kind={"const": "list"}, items=several(text(6))),
        ]
    },
    "nullable": record(
        title={"anyOf": [text(8), {"type": "null"}]}, score={"type": ["integer", "null"], "minimum": 0, "maximum": 9}
    ),
    "pattern": record(date=text(10, pattern="^20[0-9]{2}-[01][0-9]-[0-3][0-9]$"), code=text(4, pattern="^[A-Z]{2,4}$")),
    "references": {
        "$defs": {"point": record(lat=SIGNED, lon=SIGNED)},
        **record(
            start={"$ref": "#/$defs/point"}, end={"$ref": "#/$defs/point"}, via=several({"$ref": "#/$defs/point"}, 2)
        ),
    },
}
