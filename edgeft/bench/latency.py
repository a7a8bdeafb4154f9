"""Speed and memory of a model, measured in child processes.

A child holds nothing but the runtime, so the parent's torch does not count; a file that makes the runtime crash or
hang takes the child with it and is reported by name. What the numbers mean stands in DEFINITIONS, is written beside
them, and is explained in docs/benchmarks.md.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeft.bench import noise
from edgeft.bench.backends import Setup
from edgeft.bench.examples import Example
from edgeft.bench.passes import TimeLimit
from edgeft.bench.statistics import quantile, summary
from edgeft.children import Child
from edgeft.errors import Interrupted, RunCutShort, RuntimeFault, UsageError

if TYPE_CHECKING:
    from edgeft.console import Log, Progress

WORKER = (sys.executable, "-m", "edgeft.bench.worker")
LOAD_SHARE = 0.25  # of a time limit, for the loads before the one that is measured
SILENCE_S = 120.0  # a child that says nothing for so long hangs: one prompt takes seconds
DEFINITIONS = {
    "load_ms": "cold load: median over fresh processes of the time to load the model, import of the backend included; "
    "`page_cache` says how much of the file the system held in memory before",
    "reload_ms": "warm load: later loads in the same process",
    "ttft_ms": "time to first token: render the template + tokenize + run the whole prompt (no cached prefix) + pick "
    "the first token; with synthetic prompts there is no text, so the first two are absent",
    "itl_ms": "time between two tokens, raw",
    "e2e_ms": "ttft_ms + the sum of the run's itl_ms: the whole answer of n_gen tokens",
    "prompt_tokens_per_s": "prompt tokens / time from tokenized prompt to first token, all runs pooled",
    "decode_tokens_per_s": "tokens after the first / time after the first, all runs pooled",
    "cpu_s_per_token": "processor seconds of all threads after the first token / tokens after the first",
    "cpu_s_per_prompt_token": "processor seconds of all threads up to the first token / prompt tokens",
    "energy_j_per_token": "energy of the measured runs, prompts included / tokens generated; None: not counted here",
    "peak_rss_bytes": "largest resident set of the process, interpreter, backend and mapped file included",
    "peak_pss_bytes": "largest proportional set size seen after a run; shared pages count in parts; None: not known",
    "size_bytes": "the model file, or the weights in a model folder",
    "bundle_bytes": "the model file, or all files of a model folder",
    "n_gen": "exactly so many tokens are generated: the end token does not end a run",
    "quantiles": "linear between neighbours (type 7 of Hyndman and Fan)",
}


@dataclass(frozen=True)
class LatencyPlan:
    """What to run: `prompts` prompts, `n_gen` tokens each, `repetitions` times, after `warmup` unmeasured
    rounds over the prompts; `cold_loads` processes that load the file, `reloads` more loads in the last of them.

    `synthetic` pairs (n_prompt, n_gen) take the place of the prompts: random tokens, as llama-bench's.
    """

    prompts: int = 8
    n_gen: int = 64
    repetitions: int = 5
    warmup: int = 1
    reloads: int = 2
    cold_loads: int = 3
    synthetic: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        """Raises UsageError for a plan that measures nothing."""
        lengths = [n_gen for _, n_gen in self.synthetic] or [self.n_gen]
        least = min([*lengths, 2 * self.prompts, 2 * self.repetitions, 2 * self.cold_loads])
        if least < 2 or any(n_prompt < 1 for n_prompt, _ in self.synthetic):
            raise UsageError(
                "latency needs at least 1 prompt, 1 prompt token, 1 repetition, 1 cold load and n_gen 2: "
                "there is no gap in 1 token"
            )


@dataclass(frozen=True)
class Run:
    """One prompt answered once; times in milliseconds.

    `prefill_ms` is the part of `ttft_ms` after tokenizing; `itl_ms` has n_gen - 1 entries. `prefill_cpu_ms` and
    `decode_cpu_ms` are processor time of all threads in the same two parts.
    """

    prompt: int
    repetition: int
    n_prompt: int
    ttft_ms: float
    prefill_ms: float
    itl_ms: list[float]
    prefill_cpu_ms: float | None = None
    decode_cpu_ms: float | None = None

    @property
    def e2e_ms(self) -> float:
        """From the question to the last token."""
        return self.ttft_ms + sum(self.itl_ms)


@dataclass(frozen=True)
class Measurement:
    """Raw samples of one model on one machine; `summary` derives the numbers people read.

    `load_ms` are the loads of the measuring process, `fresh_load_ms` those of other fresh ones. `left_out` counts
    prompts that do not fit the context window with n_gen tokens after them; `host` holds the machine, the backend's
    version, the threads and the load average before and after; `watched` and `energy` are as `noise.Watch.stop` and
    `energy.Meter.to_json` give them. `work` has the fields of `roofline.Work`. `planned_runs` is how many runs the plan
    has; a time limit makes fewer. Not `complete`: the runtime failed or Ctrl-C came midway (`failure` says how), and
    these are the runs before.
    """

    load_ms: list[float]
    runs: list[Run]
    peak_rss_bytes: int
    size_bytes: int
    n_gen: int
    left_out: int
    host: dict[str, Any] = field(default_factory=dict)
    fresh_load_ms: list[float] = field(default_factory=list)
    page_cache: dict[str, Any] = field(default_factory=dict)
    peak_pss_bytes: int | None = None
    bundle_bytes: int | None = None
    energy: dict[str, Any] = field(default_factory=dict)
    watched: dict[str, Any] = field(default_factory=dict)
    work: dict[str, Any] | None = None
    synthetic: list[list[int]] = field(default_factory=list)
    planned_runs: int | None = None
    complete: bool = True
    failure: str = ""

    def summary(self) -> dict[str, Any]:
        """Quantiles of the samples and pooled rates, named as in DEFINITIONS; None where there are no samples."""
        generated = sum(len(run.itl_ms) + 1 for run in self.runs)
        cold, joules = [*self.fresh_load_ms, *self.load_ms[:1]], self.energy.get("joules")
        return {
            "load_ms": quantile(cold, 0.5) if cold else None,
            "reload_ms": _summary(self.load_ms[1:]),
            "n_prompt": _summary([run.n_prompt for run in self.runs]),
            **_timing(self.runs),
            "energy_j_per_token": joules / generated if joules is not None and generated else None,
            "peak_rss_bytes": self.peak_rss_bytes,
            "peak_pss_bytes": self.peak_pss_bytes,
            "size_bytes": self.size_bytes,
            "bundle_bytes": self.bundle_bytes,
            "by_length": self._by_length(),
        }

    def _by_length(self) -> list[dict[str, Any]]:
        """The timing of each synthetic (n_prompt, n_gen) apart."""
        return [
            {"n_prompt": n_prompt, "n_gen": n_gen, **_timing([run for run in self.runs if run.prompt == place])}
            for place, (n_prompt, n_gen) in enumerate(self.synthetic)
        ]

    def noise(self) -> dict[str, Any]:
        """Whether something disturbed the measurement: see `edgeft.bench.noise`."""
        rounds: dict[int, list[float]] = {}
        for run in self.runs:
            rounds.setdefault(run.repetition, []).extend(run.itl_ms)
        medians = [quantile(samples, 0.5) for samples in rounds.values() if samples]
        return {**self.watched, **noise.judge(self.watched, medians)}

    def mean_position(self) -> float:
        """Mean number of positions before a token that is decoded after the first."""
        gaps = sum(len(run.itl_ms) for run in self.runs)
        return sum(len(run.itl_ms) * (run.n_prompt + (len(run.itl_ms) + 1) / 2) for run in self.runs) / max(gaps, 1)

    def flat(self) -> dict[str, float]:
        """The numbers budgets can be set on; those that were not measured are left out."""
        whole = self.summary()
        found: dict[str, float | None] = {"load_ms": whole["load_ms"]}
        for name in ("reload_ms", "ttft_ms", "itl_ms", "e2e_ms"):
            for q in ("p50", "p90", "p95", "p99"):
                found[f"{name}_{q}"] = whole[name][q] if whole[name] else None
        found |= {name: whole[name] for name in whole if isinstance(whole[name], int | float)}
        return {name: float(value) for name, value in found.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file: summary, noise, definitions and every raw sample."""
        return {"summary": self.summary(), "noise": self.noise(), "definitions": DEFINITIONS, **asdict(self)}


def measure(
    path: Path,
    examples: Sequence[Example],
    plan: LatencyPlan,
    setup: Setup,
    *,
    log: "Log",
    command: Sequence[str] = WORKER,
    silence_s: float = SILENCE_S,
    limit: TimeLimit | None = None,
) -> Measurement:
    """Measure the model at `path` on prompts spread evenly over `examples`, or on the plan's synthetic lengths.

    Raises RunCutShort, which holds the runs so far, when the child crashes (naming the signal), fails or says
    nothing for `silence_s` seconds after its first measured run, RuntimeFault when it does before; other errors the
    runtime raises in the child are raised here again. `command` is the child to run; tests give one that misbehaves.
    A `limit` makes fewer cold loads and rounds of runs, see `worker.run_cases`. Ctrl-C after the first run raises
    Interrupted with the runs so far.
    """
    limit = limit or TimeLimit()
    loading = limit.part(LOAD_SHARE)
    prompts = [] if plan.synthetic else spread(examples, plan.prompts)
    order = {
        "path": str(path),
        "setup": asdict(setup),
        "plan": asdict(plan),
        "prompts": [{"prompt": example.prompt, "tools": example.tools} for example in prompts],
    }
    fresh = [
        event["load_ms"]
        for _ in range(plan.cold_loads - 1)
        if loading.allows()
        for event in converse(command, {**order, "task": "load"}, path, silence_s)
        if event["event"] == "loaded"
    ]
    total = (plan.warmup + plan.repetitions) * len(plan.synthetic or prompts)
    known: dict[str, Any] = {"fresh_load_ms": fresh, "synthetic": [list(pair) for pair in plan.synthetic]}
    runs: list[Run] = []
    try:
        with log.progress("latency", total, "runs") as progress:
            for event in converse(command, {**order, "task": "speed", "seconds": limit.left_s}, path, silence_s):
                _take(event, runs, known, progress)
    except (RuntimeFault, KeyboardInterrupt) as error:
        if not runs:
            raise
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(partial=_measurement(known, runs, failure=str(Interrupted()))) from None
        raise RunCutShort(str(error), _measurement(known, runs, failure=str(error))) from error
    return _measurement(known, runs)


def converse(
    command: Sequence[str], order: Mapping[str, Any], path: Path, silence_s: float
) -> Iterator[dict[str, Any]]:
    """Give `order` to a new child process and yield what it says up to its event `done`.

    Raises RuntimeFault when it dies or hangs before, and what it reports as an error.
    """
    with Child(command, f"{path}: the runtime", silence_s) as child:
        child.send(order)
        while True:
            event = child.answer()
            yield event
            if event["event"] == "done":
                return


def _take(event: dict[str, Any], runs: list[Run], known: dict[str, Any], progress: "Progress") -> None:
    """Keep what an event of the child says."""
    if event["event"] == "run":
        runs.append(Run(**event["run"]))
    elif event["event"] in ("loaded", "measured"):
        known |= {name: value for name, value in event.items() if name not in ("event", "host")}
        known["host"] = known.get("host", {}) | event.get("host", {})
    elif event["event"] == "progress":
        progress.update(event["done"])


def _measurement(known: Mapping[str, Any], runs: list[Run], failure: str = "") -> Measurement:
    """`load_ms` is one number while the model is loaded, the list of all loads at the end."""
    loads = known["load_ms"]
    fields = {"peak_rss_bytes": 0, **known, "load_ms": loads if isinstance(loads, list) else [loads]}
    return Measurement(runs=runs, complete=not failure, failure=failure, **fields)


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """`count` examples at even distances, first and last included."""
    if count >= len(examples):
        return list(examples)
    if count == 1:
        return [examples[0]]
    return [examples[round(i * (len(examples) - 1) / (count - 1))] for i in range(count)]


def _timing(runs: Sequence[Run]) -> dict[str, Any]:
    """Quantiles and pooled rates of some runs; None where there are none."""
    n_prompt, n_decoded = sum(run.n_prompt for run in runs), sum(len(run.itl_ms) for run in runs)
    prefill_ms, decode_ms = sum(run.prefill_ms for run in runs), sum(sum(run.itl_ms) for run in runs)
    prefill_cpu_ms = sum(run.prefill_cpu_ms or 0 for run in runs)
    decode_cpu_ms = sum(run.decode_cpu_ms or 0 for run in runs)
    return {
        "ttft_ms": _summary([run.ttft_ms for run in runs]),
        "itl_ms": _summary([sample for run in runs for sample in run.itl_ms]),
        "e2e_ms": _summary([run.e2e_ms for run in runs]),
        "prompt_tokens_per_s": 1e3 * n_prompt / prefill_ms if prefill_ms else None,
        "decode_tokens_per_s": 1e3 * n_decoded / decode_ms if decode_ms else None,
        "cpu_s_per_token": decode_cpu_ms / 1e3 / n_decoded if decode_cpu_ms else None,
        "cpu_s_per_prompt_token": prefill_cpu_ms / 1e3 / n_prompt if prefill_cpu_ms else None,
    }


def _summary(samples: Sequence[float]) -> dict[str, float] | None:
    if not samples:
        return None
    return summary(samples) | {"p90": quantile(samples, 0.90), "p99": quantile(samples, 0.99)}
