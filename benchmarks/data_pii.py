"""Recall and precision of `edgeft data redact` on presidio-research's synthetic set, by overlap of spans.

    python benchmarks/data_pii.py            # needs $EDGEFT_SHARED, writes results/data_pii.json

Only entity types with a defined form count. A labelled span is found when a find of its kind overlaps it; a
find is right when it overlaps a labelled span of its kind. Dates count when they name a day and a month.
"""

import argparse
import json
import os
import re
import sys
from collections import defaultdict
from importlib import metadata
from pathlib import Path

from edgeft.data.pii import FORMS, find_personal_data

HERE = Path(__file__).resolve().parent
NAMES = {"DOMAIN_NAME": "URL"}


def score(rows: list[dict]) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Counts, recall and precision per kind, and every miss and false find in words."""
    counts: dict[str, dict[str, float]] = defaultdict(lambda: {"labelled": 0, "found": 0, "finds": 0, "right": 0})
    wrong = []
    for row in rows:
        text = row["full_text"]
        labelled = [
            (NAMES.get(s["entity_type"], s["entity_type"]), s["start_position"], s["end_position"])
            for s in row["spans"]
        ]
        labelled = [s for s in labelled if s[0] in FORMS and (s[0] != "DATE_TIME" or names_day(text[s[1] : s[2]]))]
        finds = [(f.kind, f.start, f.end) for f in find_personal_data(text)]
        for kind, start, end in labelled:
            hit = any(k == kind and a < end and b > start for k, a, b in finds)
            counts[kind]["labelled"] += 1
            counts[kind]["found"] += hit
            if not hit:
                wrong.append(f"missed {kind}: {text[max(0, start - 30) : end + 15]!r}")
        for kind, start, end in finds:
            right = any(k == kind and a < end and b > start for k, a, b in labelled)
            counts[kind]["finds"] += 1
            counts[kind]["right"] += right
            if not right:
                wrong.append(f"false {kind}: {text[start:end]!r} in {text[max(0, start - 30) : end + 15]!r}")
    for one in counts.values():
        one["recall"] = round(one["found"] / max(1, one["labelled"]), 4)
        one["precision"] = round(one["right"] / max(1, one["finds"]), 4)
    return dict(counts), wrong


def names_day(text: str) -> bool:
    """At least two numbers, or a number and letters: not a bare year or weekday."""
    return len(re.findall(r"\d+", text)) >= 2 or bool(re.search(r"\d", text) and re.search(r"[A-Za-z]{3}", text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    shared = Path(os.environ.get("EDGEFT_SHARED", HERE.parent.parent / "shared"))
    parser.add_argument("--data", type=Path, default=shared / "data/presidio_pii/synth_dataset_v2.json")
    parser.add_argument("--show", action="store_true", help="print every miss and false find")
    arguments = parser.parse_args()
    counts, wrong = score(json.loads(arguments.data.read_text()))
    print(f"{'kind':<15}{'labelled':>9}{'recall':>9}{'precision':>11}")
    for kind, one in sorted(counts.items()):
        print(f"{kind:<15}{one['labelled']:>9}{one['recall']:>9.3f}{one['precision']:>11.3f}")
    if arguments.show:
        print("\n".join(wrong), file=sys.stderr)
    versions = {name: metadata.version(name) for name in ("presidio-analyzer", "phonenumbers")}
    result = {"data": arguments.data.name, "versions": versions, "kinds": counts}
    (HERE / "results" / "data_pii.json").write_text(json.dumps(result, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
