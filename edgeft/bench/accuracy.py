"""Task accuracy of a model in its runtime: greedy answers to the test set, compared with the references."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from edgeft.bench.examples import Example
from edgeft.bench.metrics import Score, score_texts

if TYPE_CHECKING:
    from edgeft.bench.backends import Runner
    from edgeft.console import Log

FINISHED, CUT, TOO_LONG = "stop", "length", "prompt_too_long"


@dataclass(frozen=True)
class Answer:
    """What came back for one prompt.

    `finish` is `stop` (the model ended its turn), `length` (cut by max_new_tokens or the context window) or
    `prompt_too_long` (nothing generated, text empty, counted as wrong). Token counts exclude the end token.
    """

    text: str
    finish: str
    n_prompt: int
    n_new: int


@dataclass(frozen=True)
class Evaluation:
    """Scores over `n` examples, the answers behind them, and the metrics the references are not made for."""

    n: int
    scores: tuple[Score, ...]
    answers: tuple[Answer, ...]
    references: tuple[str, ...]
    not_applicable: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file; the answers go to a file of their own, see `predictions`."""
        return {
            "n": self.n,
            "scores": [score.to_json() for score in self.scores],
            "not_applicable": list(self.not_applicable),
            "cut_by_length": sum(answer.finish == CUT for answer in self.answers),
            "prompts_too_long": sum(answer.finish == TOO_LONG for answer in self.answers),
            "seconds": round(self.seconds, 3),
        }

    def values(self) -> dict[str, float]:
        """{metric: value}."""
        return {score.metric: score.value for score in self.scores}

    def predictions(self) -> list[dict[str, Any]]:
        """One plain object for each example: its index, answer, reference and outcome by metric."""
        return [
            {
                "index": index,
                **asdict(answer),
                "reference": reference,
                "outcomes": {score.metric: score.outcomes[index] for score in self.scores},
            }
            for index, (answer, reference) in enumerate(zip(self.answers, self.references, strict=True))
        ]


def evaluate(
    model: "Runner", examples: Sequence[Example], metrics: Sequence[str], *, max_new_tokens: int, log: "Log"
) -> Evaluation:
    """Let `model` answer every example greedily and score the answers.

    A prompt that leaves no room in the context window gets the empty answer with finish `prompt_too_long`,
    which is wrong by every metric: a device would fail on it as well. Raises RuntimeFault when the runtime
    fails and UsageError for an unknown metric.
    """
    started = time.perf_counter()
    answers = []
    with log.progress("accuracy", len(examples), "examples") as progress:
        for done, example in enumerate(examples, 1):
            answers.append(answer(model, example, max_new_tokens))
            progress.update(done)
    return score_answers(examples, answers, metrics, time.perf_counter() - started)


def answer(model: "Runner", example: Example, max_new_tokens: int) -> Answer:
    """The greedy answer to one example, see `evaluate`."""
    tools = list(example.tools) if example.tools else None
    prompt = model.tokenize(model.render(list(example.prompt), tools=tools))
    limit = min(max_new_tokens, model.n_ctx - len(prompt))
    if limit < 1:
        return refused_answer(len(prompt))
    return finished_answer(model.generate(prompt, max_new_tokens=limit), len(prompt), limit, model.detokenize)


def score_answers(
    examples: Sequence[Example], answers: Sequence[Answer], metrics: Sequence[str], seconds: float
) -> Evaluation:
    """Compare answers, wherever they come from, with the references of `examples`."""
    references = tuple(example.answer for example in examples)
    scores = score_texts(metrics, [answer.text for answer in answers], references)
    scored = {score.metric for score in scores}
    missing = tuple(name for name in metrics if name not in scored)
    return Evaluation(len(examples), tuple(scores), tuple(answers), references, missing, seconds)


def finished_answer(
    ids: Sequence[int], n_prompt: int, limit: int, detokenize: Callable[[Sequence[int]], str]
) -> Answer:
    """The Answer for generated `ids` (without end token) under a limit of `limit` tokens."""
    return Answer(detokenize(ids), CUT if len(ids) >= limit else FINISHED, n_prompt, len(ids))


def refused_answer(n_prompt: int) -> Answer:
    """The Answer to a prompt that does not fit the context window."""
    return Answer("", TOO_LONG, n_prompt, 0)
