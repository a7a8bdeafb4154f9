"""Recall and precision of `edgeft data redact` on presidio-research's synthetic sets, by overlap of spans.

    python benchmarks/data_pii.py            # needs $EDGEFT_SHARED, writes results/data_pii.json

The rules were tuned while looking at synth_dataset_v2. The generated sets were never looked at: they say what the
rules do on text nobody made them for, and so do those of their rows whose template is in no row of the tuned set.

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
TUNED = "synth_dataset_v2.json"
HELD_OUT = ("generated_large.json", "generated_small.json")


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


def template(row: dict) -> str:
    """The row without its values and its names of kinds, which the sets spell differently."""
    return " ".join(re.sub(r"\{\{.*?\}\}", "_", row["masked"]).lower().split())


def whole(counts: dict[str, dict[str, float]]) -> dict[str, float]:
    """Recall and precision over all kinds together."""
    total = {name: sum(one[name] for one in counts.values()) for name in ("labelled", "found", "finds", "right")}
    return total | {
        "recall": round(total["found"] / max(1, total["labelled"]), 4),
        "precision": round(total["right"] / max(1, total["finds"]), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    shared = Path(os.environ.get("EDGEFT_SHARED", HERE.parent.parent / "shared"))
    parser.add_argument("--data", type=Path, default=shared / "data/presidio_pii", help="folder of the sets")
    parser.add_argument("--show", action="store_true", help="print every miss and false find of the tuned set")
    arguments = parser.parse_args()
    tuned = json.loads((arguments.data / TUNED).read_text())
    known = {template(row) for row in tuned}
    held_out = [row for name in HELD_OUT for row in json.loads((arguments.data / name).read_text())]
    sets = {
        f"{TUNED} (rules tuned on it)": tuned,
        f"{' and '.join(HELD_OUT)} (never looked at)": held_out,
        "of these, rows with a template that is not in the tuned set": [
            r for r in held_out if template(r) not in known
        ],
    }
    results = {}
    for name, rows in sets.items():
        counts, wrong = score(rows)
        counts["all kinds"] = whole(counts)
        results[name] = {"rows": len(rows), "kinds": counts}
        print(f"\n{name}: {len(rows)} rows\n{'kind':<15}{'labelled':>9}{'recall':>9}{'precision':>11}")
        for kind, one in sorted(counts.items()):
            print(f"{kind:<15}{one['labelled']:>9}{one['recall']:>9.3f}{one['precision']:>11.3f}", flush=True)
        if arguments.show and rows is tuned:
            print("\n".join(wrong), file=sys.stderr)
    versions = {name: metadata.version(name) for name in ("presidio-analyzer", "phonenumbers")}
    result = {"versions": versions, "sets": results}
    (HERE / "results" / "data_pii.json").write_text(json.dumps(result, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
