"""LLaMA-Factory's DPO demo (300 English pairs, Apache-2.0) as pairs and chat files: `python preferences.py --out DIR`.

One prompt in ten is held out of everything: with its preferred answer it is the test split. Of the rest come the
pairs (preference.jsonl, as TRL's DPOTrainer reads them) and the same prompts with their preferred answers
(train.jsonl, validation.jsonl), to fine-tune on before.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from common import data_folder, output_folder, read_json

TEST_SHARE, VALIDATION_SHARE = 0.1, 0.1
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def main() -> None:
    out, folder = output_folder(__doc__), data_folder("instruct_small")
    rows = sorted(map(_pair, read_json(folder / "dpo_en_demo.json")), key=_digest)
    held = round(len(rows) * TEST_SHARE)
    watched = held + round(len(rows) * VALIDATION_SHARE)
    _write(out / "test.jsonl", [_chat(row) for row in rows[:held]])
    _write(out / "validation.jsonl", [_chat(row) for row in rows[held:watched]])
    _write(out / "train.jsonl", [_chat(row) for row in rows[watched:]])
    _write(out / "preference.jsonl", rows[held:])
    sys.stderr.write(f"preference {len(rows) - held}, train {len(rows) - watched}, test {held}\n")


def _pair(row: dict[str, Any]) -> dict[str, Any]:
    chosen, rejected = _turn(row["chosen"]), _turn(row["rejected"])
    return {"prompt": [_turn(turn) for turn in row["conversations"]], "chosen": [chosen], "rejected": [rejected]}


def _turn(turn: dict[str, str]) -> dict[str, str]:
    return {"role": ROLES[turn["from"]], "content": turn["value"]}


def _chat(row: dict[str, Any]) -> dict[str, Any]:
    return {"messages": row["prompt"] + row["chosen"]}


def _digest(row: dict[str, Any]) -> str:
    """Of the prompt: the split depends on nothing else."""
    return hashlib.sha256(json.dumps(row["prompt"]).encode()).hexdigest()


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    main()
