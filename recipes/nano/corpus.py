"""Make edgeft-nano's pre-training corpus.

    python corpus.py --out DIR      writes train.jsonl, last.jsonl (what the run ends with) and validation.jsonl

One document a line: {"text": ...} or {"messages": [...]}. Every source is free to use (see the model card,
edgeft/assets/nano/README.md), and only training splits are read. Reads $EDGEFT_SHARED, default `../shared`
beside the repository. Standard library only; the same seed writes the same bytes.
"""

import argparse
import ast
import json
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from commands import command_documents
from skills import skill_documents

SEED = 20261121
SHARED = Path(os.environ.get("EDGEFT_SHARED") or Path(__file__).resolve().parents[3] / "shared") / "data"
HELD_OUT_STORIES = 191  # the last tenth of the TinyStories sample is never trained on
SHORT_CHARS, LONG_CHARS, LONG_SHARE = 1300, 3300, 0.15
SKILL_DOCUMENTS = 140_000
COMMAND_DOCUMENTS, LAST_SKILL_DOCUMENTS = 70_000, 14_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    rng = random.Random(SEED)
    stories = [json.loads(line)["text"] for line in _lines("tinystories_sample/stories.jsonl")]
    train = [{"text": t} for text in stories[:-HELD_OUT_STORIES] for t in _pieces(text, rng)]
    train += train  # the only simple modern English here: twice an epoch
    train += list(_books(rng)) + list(_gsm8k()) + list(_instructions(rng)) + list(_abstracts())
    train += list(_snips(rng)) + list(_spans(rng)) + list(_tables()) + list(_banking(rng)) + list(_people(rng))
    words = _vocabulary(train)
    train += list(skill_documents(rng, words, SKILL_DOCUMENTS))
    rng.shuffle(train)
    last = list(command_documents(rng, words, COMMAND_DOCUMENTS))
    last += list(skill_documents(rng, words, LAST_SKILL_DOCUMENTS)) + list(_spans(rng))
    last += rng.sample(list(_snips(rng)), 4000) + list(_banking(rng))
    last += [{"text": piece} for text in stories[:800] for piece in _pieces(text, rng)]
    held_out = _held_out_requests()
    last = [document for document in last if _spoken(document) not in held_out]
    rng.shuffle(last)
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "train.jsonl", train)
    _write(out / "last.jsonl", last)
    _write(out / "validation.jsonl", [{"text": text} for text in stories[-HELD_OUT_STORIES:]])


def _held_out_requests() -> set[str]:
    """What edgeft's own example task is tested on: no made-up request may happen to be one of these."""
    folder = Path(__file__).resolve().parents[1] / "home-assistant"
    lines = [
        line for name in ("validation", "test") for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()
    ]
    return {_spoken(json.loads(line)) for line in lines}


def _spoken(document: dict) -> str:
    """The first request, without case and punctuation; empty for a text."""
    first = document["messages"][0]["content"] if "messages" in document else ""
    return " ".join("".join(c if c.isalnum() else " " for c in first.lower()).split())


def _write(path: Path, documents: list[dict]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps(document, ensure_ascii=False) + "\n")


def _lines(name: str) -> list[str]:
    return (SHARED / name).read_text("utf-8").splitlines()


def _json(name: str) -> list | dict:
    raw = (SHARED / name).read_bytes()
    try:
        return json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError:  # some SNIPS files are Latin-1
        return json.loads(raw.decode("latin-1"))


def _chat(*turns: str) -> dict:
    """Turns alternate user, assistant."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]}


def _pieces(text: str, rng: random.Random) -> Iterator[str]:
    """Cut at paragraph or sentence ends into mostly short documents, some long ones."""
    at = 0
    while at < len(text):
        size = LONG_CHARS if rng.random() < LONG_SHARE else SHORT_CHARS
        end = min(len(text), at + size)
        if end < len(text):
            cut = max(text.rfind("\n\n", at + size // 2, end), text.rfind(". ", at + size // 2, end) + 1)
            end = cut if cut > at else end
        piece = text[at:end].strip()
        if piece:
            yield piece
        at = end


def _books(rng: random.Random) -> Iterator[dict]:
    """A third of the public-domain prose, lines unwrapped: breadth of vocabulary, old-fashioned style."""
    for name in ("wizard_of_oz", "bronte", "dubois", "darwin"):
        text = (SHARED / f"gutenberg_novels/{name}.txt").read_text("utf-8", errors="replace").replace("\r", "")
        text = "\n\n".join(" ".join(p.split()) for p in text.split("\n\n") if p.strip())
        for piece in _pieces(text, rng):
            if name == "wizard_of_oz" or rng.random() < 0.30:
                yield {"text": piece}


def _gsm8k() -> Iterator[dict]:
    for line in _lines("gsm8k/train.jsonl"):
        row = json.loads(line)
        yield _chat(row["question"], row["answer"])


def _instructions(rng: random.Random) -> Iterator[dict]:
    names = (
        "roleplay-simple-deduped-roleplay-instruct",
        "toolformer-similarity-0.6-dataset",
        "codegen-instruct",
    )
    for name in names:
        for row in _json(f"gpteacher/{name}.json"):
            if name.startswith("codegen") and rng.random() < 0.6:
                continue
            question = "\n".join(part for part in (row["instruction"], row["input"]) if part)
            yield _chat(question, row["response"])
    for line in _lines("instruct_small/seed_tasks.jsonl"):
        row = json.loads(line)
        for case in row["instances"]:
            yield _chat("\n".join(p for p in (row["instruction"], case["input"]) if p), case["output"])
    roles = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}
    for row in _json("instruct_small/glaive_toolcall_en_demo.json"):
        turns = [{"role": roles[t["from"]], "content": t["value"]} for t in row["conversations"]]
        if row["tools"] and row["tools"] != "[]":
            turns.insert(0, {"role": "system", "content": row["tools"]})
        yield {"messages": turns}


def _abstracts() -> Iterator[dict]:
    for line in _lines("scitldr/train.jsonl"):
        row = json.loads(line)
        yield _chat(" ".join(row["source"]) + "\n\ntl;dr", row["target"][0])


def _snips(rng: random.Random) -> Iterator[dict]:
    """Spoken requests with marked slots: request -> JSON of the slots, the values as they were said."""
    for folder in sorted(p.name for p in (SHARED / "snips_nlu").iterdir() if p.is_dir()):
        for row in _json(f"snips_nlu/{folder}/train_{folder}_full.json")[folder]:
            parts, lower = row["data"], rng.random() < 0.5
            text = "".join(part["text"] for part in parts).strip()
            slots = {part["entity"]: part["text"].strip() for part in parts if "entity" in part}
            answer = json.dumps({"intent": folder, **slots}, ensure_ascii=False)
            yield _chat(text.lower(), answer.lower()) if lower else _chat(text, answer)


def _spans(rng: random.Random) -> Iterator[dict]:
    names = ["restaurant8k"] + [f"dstc8/{d}" for d in ("Buses_1", "Events_1", "Homes_1", "RentalCars_1")]
    for name in names:
        for row in _json(f"restaurant8k/{name}/train_0.json"):
            text, found = row["userInput"]["text"], {}
            for label in row.get("labels", []):
                span = label["valueSpan"]
                found[label["slot"]] = text[span.get("startIndex", 0) : span["endIndex"]]
            if not found and rng.random() < 0.7:
                continue
            asked = row.get("context", {}).get("requestedSlots", [])
            yield _chat(" ".join([f"[{slot}]" for slot in asked] + [text]), json.dumps(found, ensure_ascii=False))


def _tables() -> Iterator[dict]:
    for line in _lines("wikisql_mlx/train.jsonl"):
        yield {"text": json.loads(line)["text"]}


def _banking(rng: random.Random) -> Iterator[dict]:
    """The questions only, several a document: everyday English, no labels."""
    questions = [line.rsplit(",", 1)[0].strip('"') for line in _lines("banking77/train.csv")[1:]]
    rng.shuffle(questions)
    for at in range(0, len(questions), 12):
        yield {"text": "\n".join(questions[at : at + 12])}


def _people(rng: random.Random) -> Iterator[dict]:
    """Sentences with synthetic people: find every span of a kind."""
    for row in _json("presidio_pii/generated_large.json"):
        spans = row["spans"] if isinstance(row["spans"], list) else ast.literal_eval(row["spans"])
        found: dict[str, str] = {}
        for span in sorted(spans, key=lambda s: s["start_position"]):
            found.setdefault(span["entity_type"].lower(), span["entity_value"])
        if found:
            kind = rng.choice(sorted(found))
            yield _chat(row["full_text"] + "\n\nfind " + kind, found[kind])


def _vocabulary(documents: list[dict]) -> list[str]:
    """Lower-case words of everything above, rare ones as likely as common ones, to draw synthetic phrases from.

    A copied value must be spelled anew: its first word stands behind a space in the request and behind a quote
    in the answer, as different tokens. So the phrases need the breadth of the language, not of the stories.
    """
    counts: Counter[str] = Counter()
    for document in documents:
        texts = [document["text"]] if "text" in document else [m["content"] for m in document["messages"]]
        for text in texts:
            counts.update(re.findall(r"(?<![^\s\"'(])[a-z]{2,14}(?![^\s.,!?\"';:)])", text))
    return sorted(word for word, count in counts.items() if count >= 3)


if __name__ == "__main__":
    main()
