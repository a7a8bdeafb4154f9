"""Exercises for edgeft-nano after its pre-training: copying into JSON, over and over.

    python practice.py --out DIR      writes train.jsonl, validation.jsonl and test.jsonl, chat form

A copied value has to be spelled anew: its first word stands behind a space in the request and behind a quote in
the answer, as different tokens. A base of 7 M parameters that masters this learns a task's own words in minutes;
one that does not writes `relation` for `relish`. So most documents here hold several values each. The rest are
made-up requests with their calls (`commands.py`, `skills.py`) and training splits of public data sets.
Reads $EDGEFT_SHARED as `corpus.py` does. The same seed writes the same bytes.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import corpus
from commands import command_documents
from skills import CLOSERS, OPENERS, made_up_name, skill_documents

SEED = 20261201
DOCUMENTS = {"copies": 18_000, "commands": 11_000, "skills": 5_000, "public": 5_000}
LONGEST_CHARS = 320  # of a document: exercises are short
HELD_OUT = 400  # documents of validation, and of test
VERBS = "note save add send find list pack order print paint count check keep move buy fetch sort clean".split()
JOINTS = (" and ", ", ", " in ", " for ", " from ", " to ", " with ", " on ", " at ", " by ", " then ", " under ")
KEYS = "item name place title text query label topic who what where from to by thing person city word song".split()
HEADS = ("tool", "action", "name", "intent", "do")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    rng = random.Random(SEED)
    public = [*corpus._snips(rng), *corpus._spans(rng), *corpus._people(rng), *corpus._instructions(rng)]
    prose = [*public, *corpus._books(rng), *corpus._gsm8k(), *corpus._banking(rng), *corpus._tables()]
    words = corpus._vocabulary(prose)
    short = [d for d in public if sum(len(m["content"]) for m in d["messages"]) <= LONGEST_CHARS]
    rng.shuffle(short)
    documents = [*copies(rng, words, DOCUMENTS["copies"]), *command_documents(rng, words, DOCUMENTS["commands"])]
    documents += [*skill_documents(rng, words, DOCUMENTS["skills"]), *short[: DOCUMENTS["public"]]]
    held_out = corpus._held_out_requests()
    documents = [d for d in documents if corpus._spoken(d) not in held_out and d["messages"][-1]["role"] == "assistant"]
    rng.shuffle(documents)
    out.mkdir(parents=True, exist_ok=True)
    splits = {"validation": documents[:HELD_OUT], "test": documents[HELD_OUT : 2 * HELD_OUT]}
    for name, some in (splits | {"train": documents[2 * HELD_OUT :]}).items():
        corpus._write(out / f"{name}.jsonl", some)


def copies(rng: random.Random, words: list[str], count: int) -> Iterator[dict[str, Any]]:
    """`count` requests that name one to four values, and the JSON that copies them in order."""
    for _ in range(count):
        values = [value(rng, words) for _ in range(rng.choice((1, 1, 2, 2, 3, 4)))]
        verb = rng.choice(VERBS)
        said = verb + " " + values[0] + "".join(rng.choice(JOINTS) + value for value in values[1:])
        keys = rng.sample(KEYS, len(values))
        shape = rng.randrange(4)
        if shape == 0:  # a call: the verb, and each value under a key that the request names
            said = verb + "".join(f" {key} {value}" for key, value in zip(keys, values, strict=True))
            answer: Any = {rng.choice(HEADS): verb, **dict(zip(keys, values, strict=True))}
        elif shape == 1:
            answer = {verb: values[0]} if len(values) == 1 else {verb: values}
        elif shape == 2:
            answer = {rng.choice(HEADS): verb, rng.choice(KEYS) + "s": values}
        else:
            answer = values
        compact = json.dumps(answer, separators=(",", ":") if rng.random() < 0.75 else (", ", ": "), ensure_ascii=False)
        text = rng.choice(OPENERS) + said + rng.choice(CLOSERS)
        yield {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": compact}]}


def value(rng: random.Random, words: list[str]) -> str:
    """One to four words; a few made up, a few of two words written together."""
    size = rng.choice((1, 1, 1, 2, 2, 2, 3, 4))
    return " ".join(word(rng, words) for _ in range(size))


def word(rng: random.Random, words: list[str]) -> str:
    draw = rng.random()
    if draw < 0.12:
        return made_up_name(rng)
    if draw < 0.2:
        return rng.choice(words) + rng.choice(words)
    return rng.choice(words)


if __name__ == "__main__":
    main()
