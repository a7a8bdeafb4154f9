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
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
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
TIME_IS_UP, INTERRUPTED = "time is up", "interrupted"
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
    All runs together take `minutes` at most: each may take its share of what is left, and no run begins that would
    not end in time. The clock decides then, not which file is ahead.
    A change within ±`same_within` (a share) is called the same. `clock`: `cpu` counts the processor's time,
    `wall` all time, `auto` the processor's for a model on one thread.
    """

    metric: str = METRICS[0]
    runs: int = 15
    minutes: float = 5.0
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
    an estimate of how many would settle an inconclusive outcome. `stopped` says why there are fewer runs than an
    outcome would have needed: TIME_IS_UP or INTERRUPTED. `seconds` is what the runs took.
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
    stopped: str | None = None
    seconds: float = 0.0

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
        complete = self.failure is None and self.stopped != INTERRUPTED
        return {**content, "complete": complete, "host": host.describe_host(), "error": ERROR}


def compare(
    a: Side,
    b: Side,
    plan: ComparePlan,
    *,
    example: Example = QUESTION,
    log: "Log",
    silence_s: float = SILENCE_S,
    keep: Callable[[Comparison], object] = lambda found: None,
    clock: Callable[[], float] = time.monotonic,
) -> Comparison:
    """Compare two files on the prompt of `example`.

    A file that fails (crash, hang, refusal) ends the comparison: what was measured before is kept and `failure`
    says what happened. After Ctrl-C the runs so far are judged as well. `keep` is given what is known after each run.
    Raises UsageError for a plan that measures nothing.
    """
    _check(plan)
    generator = random.Random(plan.seed)
    schedule = looks(plan.runs)
    budget = _Budget(60 * plan.minutes, clock)
    pairs: list[Pair] = []
    failure = stopped = None

    def known() -> Comparison:
        found = _conclude(a, b, plan, pairs, failure)
        return replace(found, stopped=stopped, seconds=round(budget.spent_s(), 3))

    with log.progress("compare", plan.runs, "runs") as progress:
        while len(pairs) < plan.runs and failure is None and stopped is None:
            try:
                budget.begin(plan.runs - len(pairs))
                pairs.append(_run_pair(a, b, plan, example, generator, silence_s, budget))
            except EdgeftError as error:
                failure = str(error)
            except KeyboardInterrupt:
                stopped = INTERRUPTED
            progress.update(len(pairs), f"at most {max(0.0, budget.left_s()) / 60:.1f} minutes left")
            if len(pairs) < plan.runs and stopped is None and budget.is_spent():
                stopped = TIME_IS_UP
            found = known()
            keep(found)
            if len(pairs) in schedule and found.outcome != INCONCLUSIVE:
                return replace(found, stopped=None)
    return known()


class _Budget:
    """Seconds for all runs together, shared out evenly among those that are left."""

    def __init__(self, total_s: float, clock: Callable[[], float]) -> None:
        self.total_s, self.clock = total_s, clock
        self.began = self.run_began = self.run_ends = clock()
        self.shortest_s = math.inf

    def begin(self, runs_left: int) -> None:
        """A run begins; `runs_left` counts it."""
        self.run_began = self.clock()
        self.run_ends = self.run_began + max(0.0, self.left_s()) / runs_left

    def run_is_over(self) -> bool:
        """Whether the run has had its share."""
        return self.clock() >= self.run_ends

    def is_spent(self) -> bool:
        """At the end of a run: whether another one as short as the shortest so far would not end in time."""
        self.shortest_s = min(self.shortest_s, self.clock() - self.run_began)
        return self.left_s() < self.shortest_s

    def spent_s(self) -> float:
        return self.clock() - self.began

    def left_s(self) -> float:
        return self.total_s - self.spent_s()


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
    if plan.minutes <= 0:
        raise UsageError(f"{plan.minutes:g} minutes: a comparison takes time; give more than 0")
    if not 0 < plan.same_within < 1:
        raise UsageError(f"{plan.same_within:g}: the change that counts as the same is above 0 % and below 100 %")


def _run_pair(
    a: Side,
    b: Side,
    plan: ComparePlan,
    example: Example,
    generator: random.Random,
    silence_s: float,
    budget: "_Budget",
) -> Pair:
    """Start both children, in random order, and let them make bursts in turn: one each at least, then until the
    median is precise, the plan is done or the run has had its share of the time."""
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
            precise = number + 1 >= FEWEST_BURSTS and (
                _median_error(Pair(ready, bursts), plan.metric) <= plan.precision
            )
            if precise or (number >= 0 and budget.run_is_over()):
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
