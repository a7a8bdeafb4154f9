"""GSM8K (grade-school sums worked out in words, MIT) as chat files: `python gsm8k.py --out DIR`.

The official test split in full (1,319 sums). An answer is the worked solution, the calculator's notes in
`<<...>>` left out, and ends with a line `#### number`.
"""

import json
import re
from pathlib import Path

from common import Example, data_folder, output_folder, read_text, tidy, write_splits

VALIDATION_SHARE = 0.03
CALCULATOR = re.compile(r"<<[^<>]*>>")


def main() -> None:
    out, folder = output_folder(__doc__), data_folder("gsm8k")
    write_splits(out, _read(folder / "train.jsonl"), _read(folder / "test.jsonl"), VALIDATION_SHARE)


def _read(path: Path) -> list[Example]:
    rows = [json.loads(line) for line in read_text(path).splitlines()]
    return [Example(tidy(row["question"]), CALCULATOR.sub("", row["answer"]), "sum") for row in rows]


if __name__ == "__main__":
    main()
