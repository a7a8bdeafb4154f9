"""Whether file B is faster or slower than file A on this machine, however busy it is.

One run is a pair of fresh processes, one for each file, that make short bursts of tokens in turn, in random order
and on one CPU: both meet the same load, page cache and clock frequency. The ratio of a run is the median over its
bursts; runs are independent, so the interval is over runs, which covers what a process is dealt once (addresses,
pages). Runs are added until an outcome is reached, at looks fixed beforehand that share the error between them.
docs/gating.md has the definitions and the measured error rates.
"""

import contextlib
import math
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeft.bench import host
from edgeft.bench.examples import Example
from edgeft.bench.statistics import RatioInterval, quantile, ratio_interval
from edgeft.children import Child
from edgeft.errors import EdgeftError, UsageError
from edgeft.machine.process import cores_to_pin

if TYPE_CHECKING:
    from edgeft.console import Log

WORKER = (sys.executable, "-m", "edgeft.bench.compare_worker")
SILENCE_S = 120.0
FASTER, SLOWER, SAME, INCONCLUSIVE = "faster", "slower", "same", "inconclusive"
ERROR = 0.01
"""Share of comparisons of equal files that may say faster or slower, all looks together."""
POWER = 0.90
"""With which probability the minimum detectable effect is detected."""
FIRST_LOOK, LOOK_GROWTH = 10, 1.5
FEWEST_RUNS = 8
"""Below, an interval of level 1 - ERROR does not exist: eight coins show the same side in 2 of 256 throws."""
FEWEST_BURSTS = 16
MEDIAN_ERROR = 1.2533 * 1.4826
"""Standard error of the median of n normal values, in units of their median absolute deviation / sqrt(n)."""
METRICS = (
    "decode_tokens_per_s", "prompt_tokens_per_s", "ttft_ms", "itl_ms_p50", "itl_ms_p90", "itl_ms_p95", "itl_ms_p99",
    "e2e_ms",
)  # fmt: skip
QUESTION = Example(({"role": "user", "content": "Turn on the light in the kitchen and set a timer, please."},), "")


@dataclass(frozen=True)
class ComparePlan:
    """`runs` process pairs at most, each at most `bursts` bursts of `n_gen` tokens for either file after `warmup`.

    A run ends before when the standard error of its median ratio is below `precision` (a share): the spread
    decides, never which file is ahead.
    A change within ±`same_within` (a share) is called the same. `clock`: `cpu` counts the processor's time,
    `wall` all time, `auto` the processor's for a model on one thread.
    """

    metric: str = METRICS[0]
    runs: int = 15
    bursts: int = 64
    precision: float = 0.006
    n_gen: int = 41
    warmup: int = 1
    same_within: float = 0.03
    n_ctx: int = 512
    n_threads: int | None = None
    clock: str = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Side:
    """A file under comparison: what people call it, its path, and the child that runs it."""

    name: str
    path: str
    command: Sequence[str] = WORKER


@dataclass(frozen=True)
class Pair:
    """One run: what either process said of itself and its bursts, in the order they were made."""

    ready: dict[str, Any]
    bursts: dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Comparison:
    """What became of a comparison. `ratio` is the speed of B over that of A: above 1, B is faster.

    `interval` is None below FEWEST_RUNS runs; `failure` is what ended it early, the runs before it are kept.
    `detectable` is the smallest true change (a share) that as many runs detect nine times of ten; `more_runs` is
    an estimate of how many would settle an inconclusive outcome.
    """

    a: str
    b: str
    plan: ComparePlan
    outcome: str
    ratios: tuple[float, ...]
    interval: RatioInterval | None
    detectable: float | None
    more_runs: int | None
    failure: str | None
    pairs: tuple[Pair, ...] = field(repr=False)

    def exceeds(self, max_slowdown: float, *, strict: bool = False) -> bool:
        """Whether B is slower than A by more than the share `max_slowdown`.

        The outcome must be slower and the measured slowdown above the limit; with `strict` it is enough that the
        interval does not exclude such a slowdown, so doubt fails.
        """
        if self.interval is None:
            return strict
        allowed = 1 / (1 + max_slowdown)
        if strict:
            return self.interval.low < allowed
        return self.outcome == SLOWER and self.interval.ratio < allowed

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file, raw samples included."""
        content = asdict(self)
        return {**content, "complete": self.failure is None, "host": host.describe_host(), "error": ERROR}


def compare(
    a: Side, b: Side, plan: ComparePlan, *, example: Example = QUESTION, log: "Log", silence_s: float = SILENCE_S
) -> Comparison:
    """Compare two files on the prompt of `example`.

    A file that fails (crash, hang, refusal) ends the comparison: what was measured before is kept and `failure`
    says what happened. Raises UsageError for a plan that measures nothing.
    """
    _check(plan)
    generator = random.Random(plan.seed)
    schedule = looks(plan.runs)
    pairs: list[Pair] = []
    failure = None
    with log.progress("compare", plan.runs, "runs") as progress:
        while len(pairs) < plan.runs and failure is None:
            try:
                pairs.append(_run_pair(a, b, plan, example, generator, silence_s))
            except EdgeftError as error:
                failure = str(error)
            progress.update(len(pairs))
            if len(pairs) in schedule and _conclude(a, b, plan, pairs, failure).outcome != INCONCLUSIVE:
                break
    return _conclude(a, b, plan, pairs, failure)


def looks(runs: int) -> tuple[int, ...]:
    """Numbers of runs after which the outcome is looked at, the last one `runs`: 10, 15, 22, 33, ..."""
    found: list[int] = []
    look = FIRST_LOOK
    while look < runs:
        found.append(look)
        look = round(look * LOOK_GROWTH)
    return (*found, runs)


def burst_cost(metric: str, burst: Mapping[str, Any], n_prompt: int) -> float:
    """The time a burst took as `metric` sees it, in ms; the speed is its inverse."""
    if metric == "decode_tokens_per_s":
        return sum(burst["itl_ms"]) / len(burst["itl_ms"])
    if metric == "prompt_tokens_per_s":
        return float(burst["prefill_ms"]) / n_prompt
    if metric == "e2e_ms":
        return float(burst["ttft_ms"]) + sum(burst["itl_ms"])
    if metric == "ttft_ms":
        return float(burst["ttft_ms"])
    return quantile(burst["itl_ms"], int(metric.removeprefix("itl_ms_p")) / 100)


def judge_ratio(interval: RatioInterval, same_within: float) -> str:
    """The outcome an interval allows: *same* when it lies within 1 ± `same_within` (in the logarithm), else *faster*
    or *slower* when it excludes 1, else *inconclusive*."""
    margin = 1 + same_within
    if 1 / margin < interval.low and interval.high < margin:
        return SAME
    if interval.low > 1:
        return FASTER
    return SLOWER if interval.high < 1 else INCONCLUSIVE


def _check(plan: ComparePlan) -> None:
    if plan.metric not in METRICS:
        raise UsageError(f"{plan.metric}: not a metric of compare; known: {', '.join(METRICS)}")
    if plan.runs < FEWEST_RUNS:
        raise UsageError(f"{plan.runs} runs are too few for an interval; give at least {FEWEST_RUNS}")
    if plan.bursts < 1 or plan.n_gen < 2:
        raise UsageError("a comparison needs at least 1 burst of 2 tokens: there is no gap in 1 token")
    if not 0 < plan.same_within < 1:
        raise UsageError(f"{plan.same_within:g}: the change that counts as the same is above 0 % and below 100 %")


def _run_pair(
    a: Side, b: Side, plan: ComparePlan, example: Example, generator: random.Random, silence_s: float
) -> Pair:
    """Start both children, in random order, and let them make bursts in turn."""
    order = {
        "n_ctx": plan.n_ctx, "n_threads": plan.n_threads, "clock": plan.clock, "cpu": _some_cpu(generator),
        "prompt": list(example.prompt), "tools": list(example.tools) if example.tools else None, "n_gen": plan.n_gen,
    }  # fmt: skip
    sides = [("a", a), ("b", b)]
    with contextlib.ExitStack() as stack:
        children = {}
        for name, side in generator.sample(sides, 2):
            children[name] = stack.enter_context(Child(side.command, f"{side.name}: the runtime", silence_s))
            children[name].send({**order, "path": side.path})
        ready = {name: children[name].answer() for name, _ in sides}
        bursts: dict[str, list[dict[str, Any]]] = {"a": [], "b": []}
        for number in range(-plan.warmup, plan.bursts):
            for name, _ in generator.sample(sides, 2):
                burst = children[name].ask({})
                if number >= 0:
                    bursts[name].append(burst)
            if number + 1 >= FEWEST_BURSTS and _median_error(Pair(ready, bursts), plan.metric) <= plan.precision:
                break
    return Pair(ready, bursts)


def _some_cpu(generator: random.Random) -> int | None:
    """A CPU this process may use; None where processes cannot be bound to one."""
    cores = cores_to_pin()
    return None if cores is None else generator.choice(sorted(cores))


def _log_ratios(pair: Pair, metric: str) -> np.ndarray:
    """Logarithms of the speed of B over that of A, one for each burst."""
    costs = {
        name: [burst_cost(metric, burst, pair.ready[name]["n_prompt"]) for burst in pair.bursts[name]]
        for name in ("a", "b")
    }
    return np.log(costs["a"]) - np.log(costs["b"])


def _median_error(pair: Pair, metric: str) -> float:
    ratios = _log_ratios(pair, metric)
    return float(MEDIAN_ERROR * np.median(np.abs(ratios - np.median(ratios))) / math.sqrt(len(ratios)))


def _conclude(a: Side, b: Side, plan: ComparePlan, pairs: Sequence[Pair], failure: str | None) -> Comparison:
    ratios = tuple(float(np.exp(np.median(_log_ratios(pair, plan.metric)))) for pair in pairs)
    alpha = ERROR / len(looks(plan.runs))
    interval = ratio_interval(ratios, alpha=alpha)
    outcome, detectable, more_runs = INCONCLUSIVE, None, None
    if interval is not None:
        half = math.log(interval.high / interval.low) / 2
        detectable = math.expm1(half + NormalDist().inv_cdf(POWER) * interval.log_se)
        if failure is None:
            outcome = judge_ratio(interval, plan.same_within)
        if outcome == INCONCLUSIVE:
            more_runs = _more_runs(interval, len(ratios), half, plan.same_within)
    return Comparison(a.name, b.name, plan, outcome, ratios, interval, detectable, more_runs, failure, tuple(pairs))


def _more_runs(interval: RatioInterval, runs: int, half: float, same_within: float) -> int:
    """Runs still needed if the estimate stays where it is: the interval narrows with the root of the runs."""
    change = abs(math.log(interval.ratio))
    needed = max(change, math.log1p(same_within) - change)  # to exclude 1, or to lie within the margin
    return max(1, math.ceil(runs * (half / needed) ** 2) - runs)
