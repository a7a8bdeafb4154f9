"""Speed and memory of a model file, measured in a child process of its own.

The child holds nothing but the runtime, so the parent's torch does not count; a file that makes the runtime
crash or hang takes the child with it and is reported by name. What the numbers mean stands in DEFINITIONS and
is written beside them.
"""

import contextlib
import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from edgeft import errors
from edgeft.bench.examples import Example
from edgeft.bench.statistics import summary
from edgeft.errors import EdgeftError, RuntimeFault, UsageError

if TYPE_CHECKING:
    from edgeft.console import Log

WORKER = (sys.executable, "-m", "edgeft.bench.worker")
SILENCE_S = 120.0  # a child that says nothing for so long hangs: one prompt takes seconds
DEFINITIONS = {
    "load_ms": "first load of the file in a fresh process, import of the backend included; whether the file "
    "was in the page cache is unknown",
    "reload_ms": "later loads in the same process",
    "ttft_ms": "render + tokenize + decode the whole prompt (no cached prefix) + first token",
    "itl_ms": "time between two tokens, raw",
    "prompt_tokens_per_s": "prompt tokens / time from tokenized prompt to first token, all runs pooled",
    "decode_tokens_per_s": "tokens after the first / time after the first, all runs pooled",
    "peak_rss_bytes": "largest resident set of the process, interpreter, backend and mapped file included",
    "n_gen": "exactly so many tokens are generated: the end token does not end a run",
    "quantiles": "linear between neighbours (type 7 of Hyndman and Fan)",
}


@dataclass(frozen=True)
class LatencyPlan:
    """What to run: `prompts` prompts, `n_gen` tokens each, `repetitions` times, after `warmup` unmeasured
    rounds over the prompts; `reloads` more loads of the file."""

    prompts: int = 8
    n_gen: int = 64
    repetitions: int = 5
    warmup: int = 1
    reloads: int = 2


@dataclass(frozen=True)
class Run:
    """One prompt answered once; times in milliseconds.

    `prefill_ms` is the part of `ttft_ms` after tokenizing; `itl_ms` has n_gen - 1 entries.
    """

    prompt: int
    repetition: int
    n_prompt: int
    ttft_ms: float
    prefill_ms: float
    itl_ms: list[float]


@dataclass(frozen=True)
class Measurement:
    """Raw samples of one file on one machine; `summary` derives the numbers people read.

    `left_out` counts prompts that do not fit the context window with n_gen tokens after them; `host` holds
    the machine, the backend's version, the threads and the load average before and after.
    """

    load_ms: list[float]
    runs: list[Run]
    peak_rss_bytes: int
    size_bytes: int
    n_gen: int
    left_out: int
    host: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Quantiles of the samples and pooled rates, named as in DEFINITIONS."""
        decode_ms = sum(sum(run.itl_ms) for run in self.runs)
        return {
            "load_ms": self.load_ms[0],
            "reload_ms": summary(self.load_ms[1:]) if self.load_ms[1:] else None,
            "ttft_ms": summary([run.ttft_ms for run in self.runs]),
            "itl_ms": summary([sample for run in self.runs for sample in run.itl_ms]),
            "n_prompt": summary([run.n_prompt for run in self.runs]),
            "prompt_tokens_per_s": 1e3
            * sum(run.n_prompt for run in self.runs)
            / sum(run.prefill_ms for run in self.runs),
            "decode_tokens_per_s": 1e3 * sum(len(run.itl_ms) for run in self.runs) / decode_ms,
            "peak_rss_bytes": self.peak_rss_bytes,
            "size_bytes": self.size_bytes,
        }

    def flat(self) -> dict[str, float]:
        """The numbers budgets can be set on."""
        whole = self.summary()
        return {
            "load_ms": whole["load_ms"],
            **{f"{name}_{q}": whole[name][q] for name in ("ttft_ms", "itl_ms") for q in ("p50", "p95")},
            **{name: whole[name] for name in ("prompt_tokens_per_s", "decode_tokens_per_s")},
            "peak_rss_bytes": float(self.peak_rss_bytes),
            "size_bytes": float(self.size_bytes),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file: summary, definitions and every raw sample."""
        return {"summary": self.summary(), "definitions": DEFINITIONS, **asdict(self)}


def measure(
    path: Path,
    examples: Sequence[Example],
    plan: LatencyPlan,
    *,
    n_ctx: int,
    n_threads: int | None,
    log: "Log",
    command: Sequence[str] = WORKER,
    silence_s: float = SILENCE_S,
) -> Measurement:
    """Measure the file at `path` on prompts spread evenly over `examples`, in a child process.

    Raises RuntimeFault when the child crashes (with the signal's name) or says nothing for `silence_s`
    seconds; errors the runtime raises in the child are raised here again. UsageError for a plan that
    measures nothing. `command` is the child to run; tests give one that misbehaves.
    """
    if plan.n_gen < 2 or plan.repetitions < 1 or plan.prompts < 1:
        raise UsageError("latency needs at least 1 prompt, 1 repetition and n_gen 2: there is no gap in 1 token")
    prompts = _spread(examples, plan.prompts)
    order = {
        "path": str(path),
        "n_ctx": n_ctx,
        "n_threads": n_threads,
        "plan": asdict(plan),
        "prompts": [asdict(example) for example in prompts],
    }
    with (
        log.progress("latency", (plan.warmup + plan.repetitions) * len(prompts), "runs") as progress,
        contextlib.closing(_events(command, order, path, silence_s)) as events,
    ):
        for event in events:
            if event["event"] == "progress":
                progress.update(event["done"])
            elif event["event"] == "error":
                raise _same_error(event)
            elif event["event"] == "result":
                return _measurement(event["measurement"])
    raise RuntimeFault(f"{path}: the measuring process ended without a result")


def _spread(examples: Sequence[Example], count: int) -> list[Example]:
    """`count` examples at even distances, first and last included."""
    if count >= len(examples):
        return list(examples)
    if count == 1:
        return [examples[0]]
    return [examples[round(i * (len(examples) - 1) / (count - 1))] for i in range(count)]


def _events(command: Sequence[str], order: dict[str, Any], path: Path, silence_s: float) -> Generator[Any, None, None]:
    """Start the child, hand it the order, yield what it says; the child does not outlive this generator."""
    with tempfile.TemporaryFile() as talk:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=talk)
        assert child.stdin is not None
        assert child.stdout is not None
        lines: queue.Queue[bytes | None] = queue.Queue()
        reader = threading.Thread(target=_read_lines, args=(child.stdout, lines), daemon=True)
        reader.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # a child that died is reported below
                child.stdin.write(json.dumps(order).encode())
                child.stdin.close()
            while (line := lines.get(timeout=silence_s)) is not None:
                yield json.loads(line)
            code = child.wait(timeout=silence_s)
        except (queue.Empty, subprocess.TimeoutExpired):
            message = f"{path}: the runtime said nothing for {silence_s:g} s while being measured; it hangs"
            raise RuntimeFault(message) from None
        finally:
            child.kill()
            child.wait()
            reader.join()
            child.stdout.close()
        if code:
            raise RuntimeFault(f"{path}: {_death(code)} while being measured{_last_words(talk)}")


def _read_lines(stream: IO[bytes], lines: "queue.Queue[bytes | None]") -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _death(code: int) -> str:
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"the runtime was killed by {name}"
    return f"the runtime's process ended with exit code {code}"


def _last_words(talk: IO[bytes]) -> str:
    talk.seek(0)
    lines = [line for line in talk.read().decode(errors="replace").splitlines() if line.strip()]
    return "".join(f"\n  {line}" for line in lines[-5:])


def _same_error(event: dict[str, Any]) -> EdgeftError:
    kind = getattr(errors, event["kind"], RuntimeFault)
    return kind(event["message"])


def _measurement(content: dict[str, Any]) -> Measurement:
    return Measurement(**{**content, "runs": [Run(**run) for run in content["runs"]]})
