"""Strict YAML with line numbers.

PyYAML reads YAML 1.1, where `2e-4` is text, `no` is false and `012` is ten, and where the last of two equal
keys silently wins. This reader resolves plain scalars by the core schema of YAML 1.2 (section 10.3.2),
refuses duplicate keys, and remembers on which line each value stands.
"""

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import yaml

Path = tuple[str | int, ...]
MAX_NODES = 100_000
PREFIX = "tag:yaml.org,2002:"

NULL = (PREFIX + "null", re.compile(r"^(?:~|null|Null|NULL|)$"))
BOOL = (PREFIX + "bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"))
INT = (PREFIX + "int", re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"))
FLOAT = (
    PREFIX + "float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
)


@dataclass
class Problem:
    """Something wrong at a key path; `line` counts from 1, 0 when unknown."""

    path: Path
    what: str
    line: int = 0


@dataclass
class Document:
    """Plain data (`dict`, `list`, `str`, `int`, `float`, `bool`, None) and where each value was written."""

    data: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, path: Path) -> int:
        """Line of the value at `path`, or of the nearest thing around it."""
        while path not in self.lines and path:
            path = path[:-1]
        return self.lines.get(path, 1)


def parse(text: str) -> Document:
    """Read one YAML document. Never raises for bad text: the document's `problems` say what is wrong."""
    document = Document()
    try:
        node = yaml.compose(text, Loader=_CoreLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        document.problems.append(Problem((), f"not valid YAML: {error.problem or error}{_unquoted(text, line)}", line))
        return document
    except yaml.YAMLError as error:
        document.problems.append(Problem((), f"not valid YAML: {str(error).splitlines()[0]}", 1))
        return document
    except RecursionError:
        document.problems.append(Problem((), "nested too deeply", 1))
        return document
    if node is not None:
        document.lines[()] = node.start_mark.line + 1
        document.data = _Builder(document).build(node, (), ())
    return document


def _unquoted(text: str, line: int) -> str:
    """The likely cause, where a value begins with a sign that YAML takes for the start of a block of text."""
    lines = text.splitlines()
    near = " ".join(lines[max(0, line - 2) : line])
    found = re.search(r"([\w./-]+):\s*([>|][^'\"},]*)", near)
    return f'; quote a value that begins with > or |: {found[1]}: "{found[2].strip()}"' if found else ""


class _CoreLoader(yaml.SafeLoader):
    # First character of a plain scalar -> (tag, pattern), tried in order: an int also looks like a float.
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {  # noqa: RUF012
        "": [NULL],
        **{first: [NULL] for first in "~nN"},
        **{first: [BOOL] for first in "tTfF"},
        **{first: [INT, FLOAT] for first in "-+0123456789"},
        ".": [FLOAT],
    }


class _Builder:
    """Turns PyYAML's node tree into plain data, noting lines and problems."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.nodes = 0

    def build(self, node: yaml.Node, path: Path, above: tuple[int, ...]) -> Any:
        self.nodes += 1
        if id(node) in above:
            return self.problem(path, node, "an anchor that contains itself")
        if self.nodes >= MAX_NODES:
            if self.nodes == MAX_NODES:
                self.problem(path, node, f"more than {MAX_NODES} values; is this a recipe?")
            return None
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path, (*above, id(node)))
        if isinstance(node, yaml.SequenceNode):
            return self.sequence(node, path, (*above, id(node)))
        return self.scalar(node, path)

    def mapping(self, node: yaml.MappingNode, path: Path, above: tuple[int, ...]) -> Any:
        if node.tag != PREFIX + "map":
            return self.problem(path, node, f"the tag {node.tag} is not supported")
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.scalar(key_node, path) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                self.problem(path, key_node, "a key must be text; put it in quotes")
                continue
            line = key_node.start_mark.line + 1
            if key in mapping:
                first = self.document.lines[(*path, key)]
                self.problem((*path, key), key_node, f"given twice (first on line {first})")
                continue
            self.document.lines[(*path, key)] = line
            mapping[key] = self.build(value_node, (*path, key), above)
        return mapping

    def sequence(self, node: yaml.SequenceNode, path: Path, above: tuple[int, ...]) -> Any:
        if node.tag != PREFIX + "seq":
            return self.problem(path, node, f"the tag {node.tag} is not supported")
        items = []
        for index, item in enumerate(node.value):
            self.document.lines[(*path, index)] = item.start_mark.line + 1
            items.append(self.build(item, (*path, index), above))
        return items

    def scalar(self, node: yaml.Node, path: Path) -> Hashable:
        text = node.value
        match node.tag.removeprefix(PREFIX):
            case "str":
                return text
            case "null":
                return None
            case "bool" if text.lower() in ("true", "false"):
                return text.lower() == "true"
            case "int" | "float" as tag:
                try:
                    return _integer(text) if tag == "int" else _float(text)
                except ValueError:
                    return self.problem(path, node, f"{text!r} is not a number")
            case _:
                return self.problem(path, node, f"the tag {node.tag} is not supported")

    def problem(self, path: Path, node: yaml.Node, what: str) -> Any:
        self.document.problems.append(Problem(path, what, node.start_mark.line + 1))
        return None


def _integer(text: str) -> int:
    if text.startswith(("0o", "0x")):
        return int(text, 0)
    return int(text)


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
