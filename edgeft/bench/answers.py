"""Answers of a model to the test set, made in a child process: an untrusted file never takes the tool down."""

import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from edgeft.bench.accuracy import Answer, Evaluation, Scoring, score_some
from edgeft.bench.backends import Setup
from edgeft.bench.examples import Example
from edgeft.bench.latency import SILENCE_S, WORKER, converse
from edgeft.bench.passes import TimeLimit
from edgeft.errors import Interrupted, RunCutShort, RuntimeFault

if TYPE_CHECKING:
    from edgeft.console import Log


def evaluate_file(
    path: Path,
    examples: Sequence[Example],
    scoring: Scoring,
    setup: Setup,
    *,
    max_new_tokens: int,
    log: "Log",
    command: Sequence[str] = WORKER,
    silence_s: float = SILENCE_S,
    limit: TimeLimit | None = None,
    seed: int = 42,
) -> Evaluation:
    """Let the model at `path` answer every example greedily, in a child process, and score the answers.

    Raises RunCutShort, which holds the Evaluation of the examples answered so far, when the child crashes, fails or
    says nothing for `silence_s` seconds after the first answer, RuntimeFault when it does before; other errors the
    runtime raises in the child are raised here again. Under a `limit` the examples are asked in a random order, by
    `seed`, until the time is over, so that those scored are a sample of all; the first is asked whatever the limit.
    Ctrl-C after the first answer raises Interrupted, which holds the Evaluation so far.
    """
    limit = limit or TimeLimit()
    places = asking_order(len(examples), limit, seed)
    order = {
        "task": "answers",
        "path": str(path),
        "setup": asdict(setup),
        "max_new_tokens": max_new_tokens,
        "probabilities": scoring.probabilities,
        "seconds": limit.left_s,
        "prompts": [
            {"prompt": example.prompt, "tools": example.tools, "reply": example.message}
            for example in (examples[place] for place in places)
        ],
    }
    answers: dict[int, Answer] = {}
    started = time.perf_counter()

    def scored() -> Evaluation:
        return score_some(examples, answers, scoring, time.perf_counter() - started)

    try:
        with log.progress("accuracy", len(examples), "examples") as progress:
            for event in converse(command, order, path, silence_s):
                if event["event"] == "answer":
                    answers[places[len(answers)]] = Answer(**event["answer"])
                    progress.update(len(answers))
    except (RuntimeFault, KeyboardInterrupt) as error:
        if not answers:
            raise
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(partial=scored()) from None
        raise RunCutShort(str(error), scored()) from error
    return scored()


def asking_order(count: int, limit: TimeLimit, seed: int) -> list[int]:
    """Places of `count` examples in the order they are asked in: shuffled where the time may not do for all."""
    places = list(range(count))
    if limit.left_s is not None:
        random.Random(seed).shuffle(places)
    return places
