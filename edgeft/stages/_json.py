"""Writing the JSON files of stages."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_json(path: Path, content: object) -> None:
    """Write readable JSON. A NaN in it is a bug of ours and raises ValueError."""
    path.write_text(json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n", "utf-8")


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
