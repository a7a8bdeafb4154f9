"""Banking77 (77 intents of bank customers, CC-BY 4.0) as chat files: `python banking77.py --out DIR`.

The official test.csv in full (3,080 questions). The answer is the label in lower-case words: `label` keeps
the official spelling, from which it differs by underscores, a capital and a question mark.
"""

import csv
import io
from pathlib import Path

from common import Example, data_folder, output_folder, read_text, tidy, write_splits

VALIDATION_SHARE = 0.05


def main() -> None:
    out, folder = output_folder(__doc__), data_folder("banking77")
    write_splits(out, _read(folder / "train.csv"), _read(folder / "test.csv"), VALIDATION_SHARE)


def _read(path: Path) -> list[Example]:
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    return [Example(tidy(row["text"]), _answer(row["category"]), row["category"]) for row in rows]


def _answer(category: str) -> str:
    return category.replace("_", " ").replace("?", "").lower()


if __name__ == "__main__":
    main()
