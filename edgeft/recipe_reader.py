"""From a YAML file (and `--set` overrides) to a Recipe, or to one error that lists all problems by line."""

import difflib
import functools
import re
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from edgeft import yaml12
from edgeft.errors import RecipeError
from edgeft.recipe import VARIABLE, Recipe, expand_variables, section_problems
from edgeft.yaml12 import Document, Problem

# pydantic's error types in words; {ctx} values are filled in.
EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a section (keys with values)",
    "model_type": "a section (keys with values)",
    "literal_error": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "string_pattern_mismatch": "text that matches {pattern}",
    "too_short": "a list of at least {min_length}",
}
SHOWN_KEYS = 15  # a longer list is printed only where nothing better is known
ALIASES = {
    "lr": "train.learning_rate", "learning_rate_multiplier": "train.learning_rate", "epochs": "train.num_train_epochs",
    "n_epochs": "train.num_train_epochs", "num_epochs": "train.num_train_epochs",
    "batch_size": "train.batch_tokens (tokens, not examples)", "micro_batch_size": "train.micro_batch_tokens (tokens)",
    "per_device_train_batch_size": "train.micro_batch_tokens (tokens)",
    "gradient_accumulation_steps": "train.batch_tokens (all tokens of an optimizer step)",
    "rank": "train.lora.r", "lora_r": "train.lora.r", "lora_rank": "train.lora.r", "alpha": "train.lora.lora_alpha",
    "dropout": "train.lora.lora_dropout", "max_seq_length": "data.max_length", "max_seq_len": "data.max_length",
    "sequence_len": "data.max_length", "cutoff_len": "data.max_length", "suffix": "name", "base_model": "model.base",
    "model_name_or_path": "model.base", "training_file": "data.train", "validation_file": "data.validation",
    "lr_scheduler": "train.lr_scheduler_type", "scheduler": "train.lr_scheduler_type", "dtype": "train.torch_dtype",
    "optimizer": "train.optim", "warmup_ratio": "train.warmup_steps (below 1 it is a share)",
    "load_in_4bit": "train.method: qlora", "val_set_size": "data.validation (a share, or a file)",
}  # fmt: skip
"""What other trainers (transformers, TRL, Unsloth, Axolotl, OpenAI) call a key, and our name for it."""
# YAML reads a plain value that begins like this as the start of something else.
NOT_PLAIN = (">", "|", "%", "@", "`")


def read_recipe(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read the recipe file at `path`, with `a.b=value` overrides applied in order (values are YAML).

    Raises RecipeError with all problems, one a line: `file.yaml:LINE: key.path: what is wrong`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RecipeError(f"{path}: cannot read the recipe ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text (byte {error.start}); is this a recipe?") from None
    return recipe_from_text(text, path, overrides)


def recipe_from_text(text: str, path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """`read_recipe` for text already in memory; `path` names it in messages and anchors relative paths."""
    document = yaml12.parse(text)
    if document.data is None and not document.problems:
        document.problems.append(Problem((), "the recipe is empty; `edgeft init` writes one to start from"))
    elif not isinstance(document.data, dict) and not document.problems:
        document.problems.append(Problem((), "a recipe is a mapping: keys with values"))
    overridden: set[yaml12.Path] = set()
    if isinstance(document.data, dict):
        overridden = _apply_overrides(document, overrides)
        document.problems += _unset_variables(document.data)
        try:
            if not document.problems:
                recipe = Recipe.build(document.data, path.parent)
                recipe._lines = _places(document, document.data, overridden, path)
                return recipe
            Recipe.model_validate(document.data)
        except ValidationError as error:
            document.problems += _validation_problems(error, document.data)
    raise RecipeError("\n".join(_lines(document, overridden, path)))


def _places(document: Document, data: Any, overridden: set[yaml12.Path], path: Path) -> dict[str, str]:
    """`file:LINE` of every key, by its dotted path; `--set` of what was set."""
    found: dict[str, str] = {}
    below: list[yaml12.Path] = [()]
    while below:
        here = below.pop()
        value = _value_at(data, here)
        items = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        for key in items:
            inner = (*here, key)
            below.append(inner)
            found[_dotted(inner)] = "--set" if inner in overridden else f"{path}:{document.line(inner)}"
    return found


def _lines(document: Document, overridden: set[yaml12.Path], path: Path) -> list[str]:
    located = []
    for problem in document.problems:
        from_set = any(problem.path[:depth] in overridden for depth in range(1, len(problem.path) + 1))
        line = problem.line or document.line(problem.path)
        key = f"{_dotted(problem.path)}: " if problem.path else ""
        where = "--set" if from_set else f"{path}:{line}"
        located.append((from_set, line, f"{where}: {key}{problem.what}"))
    return list(dict.fromkeys(text for *_, text in sorted(located, key=lambda entry: entry[:2])))


def _dotted(path: yaml12.Path) -> str:
    return ".".join(str(part) for part in path)


def _apply_overrides(document: Document, overrides: tuple[str, ...]) -> set[yaml12.Path]:
    """Put each `a.b=value` into the document's data; returns the paths that were set."""
    overridden = set()
    for override in overrides:
        dotted, equals, text = override.partition("=")
        path: yaml12.Path = tuple(int(part) if part.isdecimal() else part for part in dotted.split("."))
        if not equals or not all(part != "" for part in path):
            raise RecipeError(f"--set: {override!r} is not of the form key.path=value")
        overridden.add(path)
        parsed = yaml12.parse(text)
        if text.lstrip().startswith(NOT_PLAIN):
            parsed = Document(text.strip())
        problems = [problem.what for problem in parsed.problems] or _put(document.data, path, parsed.data)
        document.problems += [Problem(path, what) for what in problems]
    return overridden


def _put(data: Any, path: yaml12.Path, value: Any) -> list[str]:
    """Set `value` at `path` inside `data`, making sections on the way; returns what is in the way."""
    part: Any
    for depth, part in enumerate(path):
        here = _dotted(path[:depth])
        if isinstance(data, list):
            if not isinstance(part, int) or part > len(data):
                return [f"{here} is a list of {len(data)}; {part} is not an index of it"]
            if part == len(data):
                data.append({})
        elif isinstance(data, dict):
            part = str(part)
            if data.get(part) is None:
                data[part] = {}
        else:
            return [f"{here} is {_shown(data)}, which has no keys"]
        if depth == len(path) - 1:
            data[part] = value
        else:
            data = data[part]
    return []


def _unset_variables(data: Any, path: yaml12.Path = ()) -> list[Problem]:
    if isinstance(data, str) and VARIABLE.search(data):
        try:
            expand_variables(data)
        except RecipeError as error:
            return [Problem(path, str(error))]
    items: Any = ()
    if isinstance(data, dict):
        items = data.items()
    elif isinstance(data, list):
        items = enumerate(data)
    return [problem for key, value in items for problem in _unset_variables(value, (*path, key))]


def _validation_problems(error: ValidationError, data: dict[str, Any]) -> list[Problem]:
    """pydantic's errors in the recipe's words; alternatives of one value become one problem."""
    problems: list[Problem] = []
    expected: dict[yaml12.Path, list[str]] = {}
    for detail in error.errors(include_url=False):
        path = _real_path(detail["loc"], data)
        kind, ctx = detail["type"], detail.get("ctx", {})
        if kind in EXPECTED:
            expected.setdefault(path, []).append(EXPECTED[kind].format(**ctx))
        elif kind == "extra_forbidden":
            problems.append(Problem(path, _unknown_key(path)))
        elif kind == "missing":
            problems.append(Problem(path, f"the key `{detail['loc'][-1]}` is missing{_purpose(detail)}"))
        else:
            lines = detail["msg"].removeprefix("Value error, ").splitlines()
            problems += [_problem_of_line(path, line, data) for line in lines]
    for path, wanted in expected.items():
        value, wish = _value_at(data, path), " or ".join(dict.fromkeys(wanted))
        hint = _did_you_mean(str(value), re.findall(r"'([^']+)'", wish))
        problems.append(Problem(path, f"must be {wish}, not {_shown(value)}{hint}"))
    given = {name for name in data if data[name] is not None}
    return problems + [Problem((), what) for what in section_problems(given) if ((), what) not in problems]


def _problem_of_line(path: yaml12.Path, line: str, data: Any) -> Problem:
    """A validator's line may begin with the key it is about, inside the section it validates."""
    dotted, _, what = line.partition(": ")
    named = tuple(dotted.split("."))
    if len(named) > len(path) and _real_path(named, data) == named:
        return Problem(named, what)
    return Problem(path, line)


def _real_path(loc: tuple[int | str, ...], data: Any) -> yaml12.Path:
    """The part of pydantic's location that exists in the data (it also names members of unions)."""
    path: list[str | int] = []
    part: Any
    for part in loc:
        if (isinstance(data, dict) and part in data) or (
            isinstance(data, list) and isinstance(part, int) and part < len(data)
        ):
            data = data[part]
            path.append(part)
        else:
            break
    return tuple(path)


def _value_at(data: Any, path: yaml12.Path) -> Any:
    return functools.reduce(lambda value, part: value[part], path, data)


def _unknown_key(path: yaml12.Path) -> str:
    known = list(_section(path[:-1]).model_fields)
    name = str(path[-1])
    if meant := ALIASES.get(name.lower()):
        return f"unknown key; it is called {meant} here"
    elsewhere = sorted((place for place in key_paths() if place.split(".")[-1] == name), key=lambda p: p.count("."))
    hint = _did_you_mean(name, known) or (f"; did you mean {elsewhere[0]}?" if elsewhere else "")
    if hint and len(known) > SHOWN_KEYS:
        return f"unknown key{hint}"
    return f"unknown key{hint}; known keys: {', '.join(known)}"


def _did_you_mean(word: str, known: list[str]) -> str:
    close = [k for k in known if k.lower() == word.lower()] or difflib.get_close_matches(word, known, 1)
    return f"; did you mean {close[0]}?" if close and close[0] != word else ""


def _purpose(detail: ErrorDetails) -> str:
    path = tuple(part for part in detail["loc"] if isinstance(part, str))
    field = _section(path[:-1]).model_fields.get(path[-1])
    return f": {field.description}" if field and field.description else ""


def key_paths(section: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """Every key of a recipe as a dotted path, list items left out (`export.gguf.ftype`)."""
    paths = []
    for name, field in section.model_fields.items():
        paths.append(prefix + name)
        if inner := _section_type(field.annotation):
            paths += key_paths(inner, f"{prefix}{name}.")
    return paths


def _section(path: yaml12.Path) -> type[BaseModel]:
    section: type[BaseModel] = Recipe
    for part in path:
        if isinstance(part, str) and part in section.model_fields:
            section = _section_type(section.model_fields[part].annotation) or section
    return section


def _section_type(annotation: Any) -> type[BaseModel] | None:
    """The section inside a field's type: `Lora`, `Prepare | None`, `list[Gguf]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_type(part))), None)


def _shown(value: Any) -> str:
    match value:
        case None:
            return "empty (null)"
        case bool():
            return str(value).lower()
        case dict():
            return "a section"
        case list():
            return "a list"
        case str():
            return f"the text {value!r}"
        case _:
            return repr(value)
