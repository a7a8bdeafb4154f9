"""The child process of `compare`: it loads one file, then makes one burst of tokens for every order.

{"path": "a.gguf", "n_ctx": 512, "n_threads": null, "clock": "auto", "cpu": 1, "prompt": [...], "tools": null,
 "n_gen": 41}
    -> {"event": "ready", "load_ms": 41.2, "n_prompt": 30, "clock": "cpu", "host": {...}}
{}  -> {"event": "burst", "ttft_ms": 3.1, "prefill_ms": 3.0, "itl_ms": [...]}
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TextIO

from edgeft.bench import host
from edgeft.errors import EdgeftError, RuntimeFault, UsageError
from edgeft.machine.process import pin_to

if TYPE_CHECKING:
    from edgeft.runtime import Model

Load = Callable[..., "Model"]
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


def main(load: Load | None = None) -> int:
    """Answer orders from stdin until it ends. `load` opens the file (default: `edgeft.runtime.load`)."""
    answers = _private_stdout()

    def say(event: str, **content: Any) -> None:
        print(json.dumps({"event": event, **content}), file=answers, flush=True)

    try:
        serve(load or _load, (json.loads(line) for line in sys.stdin), say)
    except EdgeftError as error:
        say("error", kind=type(error).__name__, message=str(error))
    return 0


def serve(load: Load, orders: Iterable[dict[str, Any]], say: Callable[..., None]) -> None:
    """Load as the first order says, then run one burst for every further order.

    Raises UsageError when the prompt leaves no room for the burst, RuntimeFault when the runtime stops early.
    """
    orders = iter(orders)
    order = next(orders)
    started = time.perf_counter()
    model = load(order["path"], n_ctx=order["n_ctx"], n_threads=order["n_threads"])
    load_ms = _ms(time.perf_counter() - started)
    with model:
        n_prompt = len(_prompt_ids(model, order))
        if n_prompt + order["n_gen"] > model.n_ctx:
            raise UsageError(
                f"{order['path']}: a prompt of {n_prompt} tokens leaves no room for {order['n_gen']} more in a "
                f"context of {model.n_ctx}; lower --n-gen or give shorter prompts with --data"
            )
        clock = _clock(order["clock"], model.n_threads)
        if model.n_threads == 1 and order["cpu"] is not None:
            pin_to({order["cpu"]})
        settings = {"n_threads": model.n_threads, "n_ctx": model.n_ctx, "backend": host.backend_versions()}
        say("ready", load_ms=load_ms, n_prompt=n_prompt, clock=clock, host=settings)
        for _ in orders:
            say("burst", **_burst(model, order, CLOCKS[clock]))


def _clock(asked: str, n_threads: int) -> str:
    """`auto` is the processor's clock for one thread (waiting for a CPU does not count), else the wall's."""
    if asked != "auto":
        return asked
    return "cpu" if n_threads == 1 and sys.platform in ("linux", "darwin") else "wall"


def _burst(model: "Model", order: dict[str, Any], now: Callable[[], float]) -> dict[str, Any]:
    started = now()
    ids = _prompt_ids(model, order)
    tokenized = now()
    times = [now() for _ in model.stream(ids, max_new_tokens=order["n_gen"], ignore_eos=True)]
    if len(times) != order["n_gen"]:
        raise RuntimeFault(f"{order['path']}: the runtime made {len(times)} tokens instead of {order['n_gen']}")
    return {
        "ttft_ms": _ms(times[0] - started),
        "prefill_ms": _ms(times[0] - tokenized),
        "itl_ms": [_ms(after - before) for before, after in itertools.pairwise(times)],
    }


def _prompt_ids(model: "Model", order: dict[str, Any]) -> list[int]:
    return model.tokenize(model.render(order["prompt"], tools=order["tools"]))


def _load(path: str, **settings: Any) -> "Model":
    from edgeft import runtime  # inside the clock: an app pays for this import as well

    return runtime.load(path, **settings)


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 5)


def _private_stdout() -> TextIO:
    """The real stdout for answers only; whatever the backend prints goes to stderr from here on."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


if __name__ == "__main__":
    sys.exit(main())
