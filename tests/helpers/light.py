"""Which test files are light: nothing they import, however far, is one of the libraries that take seconds to import.

The quick tests (`-m quick`, `make quick`) are the tests of these files that are not marked `slow`. A new file is one of
them by itself, as long as it imports no heavy library; nobody keeps a list.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAVY = frozenset({
    "accelerate", "bitsandbytes", "datasets", "lm_eval", "optimum", "peft", "sklearn", "torch", "transformers",
    "trl",
})  # fmt: skip
OURS = ("edgeft", "tests")


def is_light(path: Path) -> bool:
    """Whether the test file `path` is light, by what stands in the files; nothing is imported."""
    return not _heavy(_module_name(path))


@cache
def _heavy(module: str) -> bool:
    """Whether importing the module `module` of ours imports one of HEAVY."""
    seen, waiting = {module}, [module]
    while waiting:
        for name in _imports(waiting.pop()):
            if name.split(".")[0] in HEAVY:
                return True
            if name.split(".")[0] in OURS and name not in seen:
                seen.add(name)
                waiting.append(name)
    return False


@cache
def _imports(module: str) -> tuple[str, ...]:
    """What `module` imports: of ours, the modules with their packages; of others, the names.

    Imports inside a function count for tests, which call it, and not for edgeft, which keeps heavy ones there.
    """
    path = _file(module)
    if path is None:
        return ()
    tree = ast.parse(path.read_text("utf-8"))
    nodes = ast.walk(tree) if module.split(".")[0] == "tests" else _at_import(tree)
    found: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "importorskip":
            found += [node.args[0].value] if isinstance(node.args[0], ast.Constant) else []
    return tuple(package for name in found for package in _with_packages(name))


def _at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported: no function bodies, nothing for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from _at_import(node)


def _with_packages(name: str) -> Iterator[str]:
    parts = name.split(".")
    if parts[0] not in OURS:
        yield name
        return
    yield from (".".join(parts[: n + 1]) for n in range(len(parts)))


def _file(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _module_name(path: Path) -> str:
    return ".".join(path.resolve().relative_to(ROOT).with_suffix("").parts)
