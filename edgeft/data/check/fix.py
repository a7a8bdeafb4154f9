"""`edgeft data check --fix`: a copy of a file without what can be mended by a machine. The file stays as it is."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeft.artifact import writing
from edgeft.data import formats, reading, sources
from edgeft.data.check.codes import CODES, DROP
from edgeft.data.check.structure import conversation_problems
from edgeft.data.check.text import CONTROL, INVISIBLE, SURROGATE
from edgeft.data.importing import encode
from edgeft.errors import DataError

if TYPE_CHECKING:
    from edgeft.data.check.engine import Checked, FileSummary


@dataclass(frozen=True)
class Fixed:
    """The copy, and what became of the lines."""

    path: Path
    kept: int
    dropped: int
    changed: int


def fix_file(summary: "FileSummary", checked: "Checked", columns: dict[str, str] | None) -> Fixed:
    """Write the mended copy as canonical chat JSONL beside the file. Raises DataError for stdin."""
    path = summary.path
    if path == sources.STDIN:
        raise DataError("--fix writes beside the file it mends; stdin is none: save it first")
    out = path.with_name(re.sub(r"(\.[A-Za-z]+)+$", "", path.name) + ".fixed.jsonl")
    doubled = checked.doubled.get(str(path), set())
    shape = formats.by_name(summary.format)
    mapper = reading.column_mapper(columns) if columns else None
    count = Counter(kept=0, dropped=0, changed=0)
    with writing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for line, row in reading.rows(path, summary.encoding):
            try:
                if isinstance(row, formats.Unreadable) or line in doubled:
                    raise formats.Unreadable("dropped")
                examples = shape.read(mapper(row, Counter()) if mapper else row, Counter())
            except formats.Unreadable:
                count["dropped"] += 1
                continue
            for example in examples:
                changed = _clean(example)
                if any(CODES[code].fix == DROP for code, _ in conversation_problems(example)) or _cut(example):
                    count["dropped"] += 1
                    continue
                count["changed"] += changed
                count["kept"] += 1
                file.write(encode(example) + "\n")
    return Fixed(out, **count)


def _clean(example: formats.Example) -> bool:
    """Mend the texts in place; says whether anything changed."""
    changed = False
    for message in (*example["messages"], *(example.get("rejected") or ())):
        clean = clean_text(message["content"])
        if message["role"] == "assistant":
            clean = clean.strip()
        changed |= clean != message["content"]
        message["content"] = clean
    return changed


def clean_text(text: str) -> str:
    """Without control and invisible characters, mojibake repaired by ftfy."""
    text = INVISIBLE.sub("", text)
    if not text.isascii() and not SURROGATE.search(text):
        import ftfy
        from ftfy.badness import is_bad

        if is_bad(text):
            text = ftfy.fix_encoding(text)
    return CONTROL.sub("", text)


def _cut(example: Any) -> bool:
    return any(SURROGATE.search(message["content"]) for message in example["messages"])
