"""What differs between two bundles, or two GGUF files: tensors and their types, tokenizer, template, numbers.

Standard library only; nothing is loaded or run.
"""

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.artifact import sha256_file
from edgeft.bundle.diff_gguf import gguf_differences
from edgeft.errors import BundleError, UsageError
from edgeft.runtime.bundle import Bundle, is_bundle, open_bundle

DOCUMENTS = ("generation", "schema", "labels", "calibration")
"""Roles that are JSON and compared key by key."""
PARTS = (
    "model", "types", "tensors", "metadata", "tokenizer", "template", *DOCUMENTS, "grammar", "metrics", "recipe",
    "inputs", "packages", "files",
)  # fmt: skip
"""In the order they are shown."""


@dataclass(frozen=True)
class Difference:
    """In `part` (one of PARTS), `name` is `before` in the first and `after` in the second; None: not there."""

    part: str
    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Side:
    """One of the two: a model file or folder, and its bundle if it came in one."""

    model: Path
    bundle: Bundle | None = None


def open_side(path: Path, cache: Path) -> Side:
    """A bundle, checked, or a GGUF file. Raises UsageError for anything else, BundleError for a damaged bundle."""
    if is_bundle(path):
        bundle = open_bundle(path, cache)
        return Side(bundle.model, bundle)
    if path.is_file() and path.suffix == ".gguf":
        return Side(path)
    raise UsageError(f"{path}: neither a bundle nor a .gguf file")


def differences(a: Side, b: Side) -> list[Difference]:
    """All that differs, part by part.

    Raises ModelError when a GGUF file is damaged, BundleError when a document in a bundle is not as edgeft writes it.
    """
    found = [*_models(a.model, b.model)]
    if a.bundle is not None and b.bundle is not None:
        try:
            found += _bundles(a.bundle, b.bundle)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            where = f"{a.bundle.path} or {b.bundle.path}"
            raise BundleError(f"{where}: holds a document that is not as edgeft writes it ({error!r})") from None
    return sorted(found, key=lambda one: PARTS.index(one.part))


def _models(a: Path, b: Path) -> Iterator[Difference]:
    if a.suffix == b.suffix == ".gguf":
        yield from (Difference(*found) for found in gguf_differences(a, b))
    elif a.is_dir() and b.is_dir():
        yield from _changed("files", _hashes(a), _hashes(b))
    else:
        yield Difference("model", "format", a.suffix or "folder", b.suffix or "folder")


def _bundles(a: Bundle, b: Bundle) -> Iterator[Difference]:
    for role in DOCUMENTS:
        yield from _changed(role, flat(a.json(role)), flat(b.json(role)))
    for role, part in (("chat_template", "template"), ("grammar", "grammar")):
        for line, *texts in text_differences(_text(a, role), _text(b, role)):
            yield Difference(part, f"{role} {line}", *texts)
    yield from _tokenizers(a, b)
    yield from _changed("metrics", _metrics(a), _metrics(b))
    before, after = a.json("recipe") or {}, b.json("recipe") or {}
    yield from _changed("recipe", flat(before.get("recipe")), flat(after.get("recipe")))
    yield from _changed("inputs", before.get("inputs", {}), after.get("inputs", {}))
    yield from _changed("packages", _packages(before), _packages(after))


def text_differences(before: str | None, after: str | None) -> Iterator[tuple[str, str | None, str | None]]:
    """Lines only in one of two texts, with their numbers, as (`line N`, before, after)."""
    old, new = (text.splitlines() if text is not None else [] for text in (before, after))
    for kind, i, j, k, n in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind != "equal":
            lines = "\n".join(old[i:j]) or None, "\n".join(new[k:n]) or None
            yield (f"line {(i if old else k) + 1}", *lines)
    if old == new and before != after:
        yield "line ends", repr((before or "")[-2:]), repr((after or "")[-2:])


def _tokenizers(a: Bundle, b: Bundle) -> Iterator[Difference]:
    """Entry by entry: vocabulary, merges, rules, and what tokenizer_config.json says."""
    one, other = (_json(side.path / "tokenizer" / "tokenizer.json") for side in (a, b))
    yield from _changed("tokenizer", flat(one), flat(other))
    config = [flat(_json(side.path / "tokenizer" / "tokenizer_config.json")) for side in (a, b)]
    yield from _changed("tokenizer", *config)


def _metrics(bundle: Bundle) -> dict[str, Any]:
    """Measured numbers, with their interval where there is one."""
    measured = bundle.json("measurements") or {}
    metrics = dict(measured.get("metrics", {}))
    for score in measured.get("accuracy", {}).get("scores", []):
        low, high = score["ci95"]
        metrics[score["metric"]] = f"{score['value']:.4g} [{low:.4g}, {high:.4g}]"
    return metrics


def _packages(record: Mapping[str, Any]) -> dict[str, Any]:
    made_from = [stage["made_from"] for stage in record.get("stages", {}).values()]
    return {key[8:]: value for one in made_from for key, value in one.items() if key.startswith("package ")}


def _changed(part: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Difference]:
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name) or (name in before) != (name in after):
            values = (_shown(side[name]) if name in side else None for side in (before, after))
            yield Difference(part, name, *values)


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """{"a.b": 1, "c.0": 2}: the leaves of a JSON value by their path; {} for None."""
    if isinstance(value, dict) and value:
        items = value.items()
    elif isinstance(value, list) and value:
        items = {str(at): item for at, item in enumerate(value)}.items()
    else:
        return {} if value is None and not prefix else {prefix.rstrip("."): value}
    return {key: leaf for name, inner in items for key, leaf in flat(inner, f"{prefix}{name}.").items()}


def _hashes(folder: Path) -> dict[str, Any]:
    names = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): f"sha256 {sha256_file(path)[:16]}…" for path in names}


def _text(bundle: Bundle, role: str) -> str | None:
    path = bundle.file(role)
    return None if path is None else path.read_text(encoding="utf-8", errors="replace")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
