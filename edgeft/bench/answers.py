"""Answers of a model to the test set, made in a child process: an untrusted file never takes the tool down."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from edgeft.bench.accuracy import Answer, Evaluation, Scoring, score_answers
from edgeft.bench.backends import Setup
from edgeft.bench.examples import Example
from edgeft.bench.latency import SILENCE_S, WORKER, converse
from edgeft.errors import RunCutShort, RuntimeFault

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
) -> Evaluation:
    """Let the model at `path` answer every example greedily, in a child process, and score the answers.

    Raises RunCutShort, which holds the Evaluation of the examples answered so far, when the child crashes, fails or
    says nothing for `silence_s` seconds after the first answer, RuntimeFault when it does before; other errors the
    runtime raises in the child are raised here again.
    """
    order = {
        "task": "answers",
        "path": str(path),
        "setup": asdict(setup),
        "max_new_tokens": max_new_tokens,
        "probabilities": scoring.probabilities,
        "prompts": [
            {"prompt": example.prompt, "tools": example.tools, "reply": example.message} for example in examples
        ],
    }
    answers: list[Answer] = []
    started = time.perf_counter()

    def scored() -> Evaluation:
        return score_answers(examples[: len(answers)], answers, scoring, time.perf_counter() - started)

    try:
        with log.progress("accuracy", len(examples), "examples") as progress:
            for event in converse(command, order, path, silence_s):
                if event["event"] == "answer":
                    answers.append(Answer(**event["answer"]))
                    progress.update(len(answers))
    except RuntimeFault as error:
        if not answers:
            raise
        raise RunCutShort(str(error), scored()) from error
    return scored()
