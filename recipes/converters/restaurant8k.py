"""Restaurant8k (spans in restaurant bookings, CC-BY 4.0) as chat files: `python restaurant8k.py --out DIR`.

The official test.json in full (3,731 turns). The answer is compact JSON of the spans, copied as said, in the
order of SLOTS, `{}` if there is none. Slots the booking system had just asked for stand before the text, as
in `[time] at 7 please`: without them "7" could be anything.

labelled.jsonl has 1,024 of the training turns, an eighth of the official ones as in the few-shot splits of Coope et al.
2020 (Span-ConveRT, ACL), unlabelled.jsonl what was said in the others.
"""

import json
from pathlib import Path
from typing import Any

from common import Example, data_folder, output_folder, read_json, tidy, write_few_labels, write_splits

SLOTS = ("people", "time", "date", "first_name", "last_name")
VALIDATION_SHARE = 0.05
FEW_LABELS = 1024


def main() -> None:
    out, folder = output_folder(__doc__), data_folder("restaurant8k") / "restaurant8k"
    train = write_splits(out, _read(folder / "train_0.json"), _read(folder / "test.json"), VALIDATION_SHARE)
    write_few_labels(out, train, FEW_LABELS)


def _read(path: Path) -> list[Example]:
    return [_example(row) for row in read_json(path)]


def _example(row: dict[str, Any]) -> Example:
    text = row["userInput"]["text"]
    asked = row.get("context", {}).get("requestedSlots", [])
    found = {}
    for label in sorted(row.get("labels", []), key=lambda label: SLOTS.index(label["slot"])):
        span = label["valueSpan"]  # an offset of zero is left out in the files
        found[label["slot"]] = tidy(text[span.get("startIndex", 0) : span["endIndex"]])
    question = " ".join([f"[{slot}]" for slot in SLOTS if slot in asked] + [tidy(text)])
    answer = json.dumps(found, separators=(",", ":"), ensure_ascii=False)
    return Example(question, answer, "+".join(found) or "none")


if __name__ == "__main__":
    main()
