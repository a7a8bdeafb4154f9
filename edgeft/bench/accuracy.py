"""Task accuracy of a model in its runtime: greedy answers to the test set, compared with the references.

Metrics of texts are in `metrics`; those that need more are here: `json_schema_valid` (a schema), `perplexity` and
`ece` (probabilities from the runtime), `out_of_scope_recall` (the answer that abstains).
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from edgeft.bench.budgets import BENCH_METRICS
from edgeft.bench.calibration import ece_score, out_of_scope_score, reliability
from edgeft.bench.examples import Example, digest
from edgeft.bench.json_values import INVALID, canonical, parse_container
from edgeft.bench.metrics import known_metrics, score_texts
from edgeft.bench.perplexity import answer_log_probs, perplexity_score, reference_ids
from edgeft.bench.schema import checker, schema_score
from edgeft.bench.scores import Score
from edgeft.bench.slices import MINIMUM, slice_tables
from edgeft.errors import UsageError

if TYPE_CHECKING:
    from edgeft.bench.backends import Runner
    from edgeft.console import Log

FINISHED, CUT, TOO_LONG = "stop", "length", "prompt_too_long"


@dataclass(frozen=True)
class Scoring:
    """What is made of the answers; names and defaults as in the recipe's `bench` section.

    `json_schema` is what `json_schema_valid` checks against. An answer equal to `out_of_scope` (as JSON, or as text)
    abstains, and so does one less likely than `abstain_below`. `slice_by` names fields of the examples; a slice of
    fewer than `slice_minimum` examples is neither best nor worst.
    """

    metrics: Sequence[str] = ("exact_match",)
    json_schema: Mapping[str, Any] | None = None
    out_of_scope: str | None = None
    abstain_below: float = 0.0
    slice_by: Sequence[str] = ()
    slice_minimum: int = MINIMUM

    def __post_init__(self) -> None:
        """Raises UsageError for a metric that is unknown or lacks what it needs, and for a schema that is none."""
        known = (*known_metrics(), *BENCH_METRICS)
        for name in self.metrics:
            if name not in known:
                raise UsageError(f"unknown metric {name}; known: {', '.join(known)}")
        for name, given in (("json_schema_valid", self.json_schema), ("out_of_scope_recall", self.out_of_scope)):
            if name in self.metrics and given is None:
                key = "json_schema" if name == "json_schema_valid" else "out_of_scope"
                raise UsageError(f"the metric {name} needs bench.{key}; set it, or leave the metric out")
        if self.json_schema is not None:
            checker(self.json_schema)

    @property
    def probabilities(self) -> bool:
        """Whether the runtime must say how likely its answers and the references are."""
        return bool({"perplexity", "ece"} & set(self.metrics)) or self.abstain_below > 0


@dataclass(frozen=True)
class Answer:
    """What came back for one prompt.

    `finish` is `stop` (the model ended its turn), `length` (cut by max_new_tokens or the context window) or
    `prompt_too_long` (nothing generated, text empty, counted as wrong). Token counts exclude the end token. Where
    probabilities are asked for: `log_prob` of the answer (natural logarithm, end token included where it ended),
    `reference_nll` of the reference (nats, end token included) and the `reference_tokens` that is over.
    """

    text: str
    finish: str
    n_prompt: int
    n_new: int
    log_prob: float | None = None
    reference_nll: float | None = None
    reference_tokens: int | None = None

    @property
    def confidence(self) -> float | None:
        """Probability of the answer."""
        return None if self.log_prob is None else math.exp(self.log_prob)


@dataclass(frozen=True)
class Evaluation:
    """Scores over `n` examples, the answers behind them, and the metrics the references are not made for.

    `slices` are as `slices.slice_tables` makes them, `reliability` as `calibration.reliability`. `examples_sha256` says
    which `n_asked` examples were asked for; `scored` are the places of the `n` among them, None for all. Where some
    are left out, `shortfall` says why.
    """

    n: int
    scores: tuple[Score, ...]
    answers: tuple[Answer, ...]
    references: tuple[str, ...]
    not_applicable: tuple[str, ...]
    seconds: float
    slices: Sequence[Mapping[str, Any]] = ()
    reliability: Sequence[Mapping[str, float]] = ()
    examples_sha256: str = ""
    scored: Sequence[int] | None = None
    n_asked: int = 0
    shortfall: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file; the answers go to a file of their own, see `predictions`."""
        return {
            "n": self.n,
            "scores": [score.to_json() for score in self.scores],
            "not_applicable": list(self.not_applicable),
            "cut_by_length": sum(answer.finish == CUT for answer in self.answers),
            "prompts_too_long": sum(answer.finish == TOO_LONG for answer in self.answers),
            "seconds": round(self.seconds, 3),
            "slices": list(self.slices),
            "reliability": list(self.reliability),
            "examples_sha256": self.examples_sha256,
            "scored": None if self.scored is None else list(self.scored),
            "n_asked": self.n_asked,
            "shortfall": self.shortfall,
        }

    def values(self) -> dict[str, float]:
        """{metric: value}."""
        return {score.metric: score.value for score in self.scores}

    def predictions(self) -> list[dict[str, Any]]:
        """One plain object for each example: its index in the test set, answer, reference and outcome by metric."""
        places = self.scored or range(self.n)
        return [
            {
                "index": places[index],
                **{name: value for name, value in asdict(answer).items() if value is not None},
                "reference": reference,
                "outcomes": {score.metric: score.outcomes[index] for score in self.scores},
            }
            for index, (answer, reference) in enumerate(zip(self.answers, self.references, strict=True))
        ]


def evaluate(
    model: "Runner", examples: Sequence[Example], scoring: Scoring, *, max_new_tokens: int, log: "Log"
) -> Evaluation:
    """Let `model` answer every example greedily and score the answers.

    A prompt that leaves no room in the context window gets the empty answer with finish `prompt_too_long`,
    which is wrong by every metric: a device would fail on it as well. Raises RuntimeFault when the runtime
    fails and UsageError when it is asked for probabilities it cannot give.
    """
    started = time.perf_counter()
    answers = []
    with log.progress("accuracy", len(examples), "examples") as progress:
        for done, example in enumerate(examples, 1):
            answers.append(answer(model, example, max_new_tokens, probabilities=scoring.probabilities))
            progress.update(done)
    return score_answers(examples, answers, scoring, time.perf_counter() - started)


def answer(model: "Runner", example: Example, max_new_tokens: int, *, probabilities: bool = False) -> Answer:
    """The greedy answer to one example, see `evaluate`."""
    tools = list(example.tools) if example.tools else None
    prompt = model.tokenize(model.render(list(example.prompt), tools=tools))
    limit = min(max_new_tokens, model.n_ctx - len(prompt))
    if limit < 1:
        return refused_answer(len(prompt))
    ids = model.generate(prompt, max_new_tokens=limit)
    given = finished_answer(ids, len(prompt), limit, model.detokenize)
    return _with_probabilities(given, model, example, prompt, ids) if probabilities else given


def score_answers(
    examples: Sequence[Example], answers: Sequence[Answer], scoring: Scoring, seconds: float
) -> Evaluation:
    """Compare answers, wherever they come from, with the references of `examples`: one for each, in their order."""
    texts, references = [answer.text for answer in answers], tuple(example.answer for example in examples)
    of_texts = score_texts([name for name in scoring.metrics if name not in BENCH_METRICS], texts, references)
    scores = {score.metric: score for score in of_texts}
    confidences = [answer.confidence for answer in answers]
    right = _first_share(of_texts) or [float(t.strip() == r.strip()) for t, r in zip(texts, references, strict=True)]
    scores |= {score.metric: score for score in _more_scores(answers, references, right, scoring) if score is not None}
    ordered = tuple(scores[name] for name in scoring.metrics if name in scores)
    return Evaluation(
        n=len(examples),
        scores=ordered,
        answers=tuple(answers),
        references=references,
        not_applicable=tuple(name for name in scoring.metrics if name not in scores),
        seconds=seconds,
        slices=tuple(slice_tables(examples, ordered, scoring.slice_by, minimum=scoring.slice_minimum)),
        reliability=tuple(reliability(confidences, right)) if "ece" in scores else (),
        examples_sha256=digest(examples),
        n_asked=len(examples),
    )


def score_some(
    examples: Sequence[Example], answers: Mapping[int, Answer], scoring: Scoring, seconds: float
) -> Evaluation:
    """`score_answers` of those of `examples` that have an answer: {place: answer}, in any order."""
    places = sorted(answers)
    found = score_answers([examples[i] for i in places], [answers[i] for i in places], scoring, seconds)
    if len(places) == len(examples):
        return found
    return replace(
        found,
        scored=tuple(places),
        shortfall=_scored_text(len(places), len(examples)),
        examples_sha256=digest(examples),
        n_asked=len(examples),
    )


def in_time(evaluation: Evaluation, minutes: float, minutes_for_all: int) -> Evaluation:
    """An evaluation that stopped because `minutes` were over, with that said in its `shortfall`."""
    if evaluation.scored is None:
        return evaluation
    scored = _scored_text(evaluation.n, evaluation.n_asked)
    more = f"{minutes_for_all} {'minute' if minutes_for_all == 1 else 'minutes'} would score all"
    shortfall = f"{scored} in {minutes:g} {'minute' if minutes == 1 else 'minutes'}; {more}"
    return replace(evaluation, shortfall=shortfall)


def _scored_text(n: int, n_asked: int) -> str:
    return f"scored {n:,} of {n_asked:,} examples"


def finished_answer(
    ids: Sequence[int], n_prompt: int, limit: int, detokenize: Callable[[Sequence[int]], str]
) -> Answer:
    """The Answer for generated `ids` (without end token) under a limit of `limit` tokens."""
    return Answer(detokenize(ids), CUT if len(ids) >= limit else FINISHED, n_prompt, len(ids))


def refused_answer(n_prompt: int) -> Answer:
    """The Answer to a prompt that does not fit the context window."""
    return Answer("", TOO_LONG, n_prompt, 0)


def _more_scores(
    answers: Sequence[Answer], references: Sequence[str], right: Sequence[float | None], scoring: Scoring
) -> Iterator[Score | None]:
    """The scores of BENCH_METRICS that are asked for; `right` is what confidence is held against."""
    confidences = [answer.confidence for answer in answers]
    if "json_schema_valid" in scoring.metrics and scoring.json_schema is not None:
        yield schema_score(scoring.json_schema, [answer.text for answer in answers])
    if "perplexity" in scoring.metrics:
        yield perplexity_score([_nll(answer) for answer in answers])
    if "ece" in scoring.metrics:
        yield ece_score(confidences, right)
    if "out_of_scope_recall" in scoring.metrics and scoring.out_of_scope is not None:
        abstains = _comparable(scoring.out_of_scope)
        wanted = [_comparable(reference) == abstains for reference in references]
        said = [_comparable(answer.text) == abstains for answer in answers]
        yield out_of_scope_score(wanted, said, confidences, scoring.abstain_below)


def _first_share(scores: Sequence[Score]) -> tuple[float | None, ...]:
    """Outcomes of the first metric that says right or wrong."""
    return next((score.outcomes for score in scores if score.interval == "wilson"), ())


def _nll(answer: Answer) -> tuple[float, int] | None:
    if answer.reference_nll is None or answer.reference_tokens is None:
        return None
    return answer.reference_nll, answer.reference_tokens


def _comparable(text: str) -> Any:
    """JSON as a value, anything else as text without outer white space."""
    value = parse_container(text)
    return text.strip() if value is INVALID else canonical(value)


def _with_probabilities(
    given: Answer, model: Any, example: Example, prompt: Sequence[int], ids: Sequence[int]
) -> Answer:
    if not hasattr(model, "score"):
        raise UsageError("this backend cannot say how likely a text is: leave out perplexity, ece and abstain_below")
    log_prob = sum(answer_log_probs(model, prompt, ids, ended=given.finish == FINISHED))
    wanted = reference_ids(model, example.prompt, example.message, list(example.tools) if example.tools else None)
    if wanted is None or len(prompt) + len(wanted) > model.n_ctx:
        return replace(given, log_prob=log_prob)
    log_probs = answer_log_probs(model, prompt, wanted, ended=True)
    return replace(given, log_prob=log_prob, reference_nll=-sum(log_probs), reference_tokens=len(log_probs))
