"""Whether constrained answers are valid, and what the constraint costs, on both backends.

    python benchmarks/constrained_output.py [--generations 1000] [--gguf FILE] [--onnx FOLDER] [--threads 1]

The twenty schemas of the tests, in turn; the prompts differ, every second answer is drawn (temperature 1, a seed of
its own), the others are greedy. Without files: the embedded base as Q4_K_M and as int4 ONNX. An answer is valid if
jsonschema-rs takes it; one that `max_new_tokens` cuts is not.

Inter-token latency is the time from the first token to the last by the number of tokens between, all answers
together. Behind each constrained answer runs a free one from the same prompt, with the same sampling, of the same
number of tokens; its tokens are asked for bare, without text.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jsonschema_rs

from edgeft import runtime
from edgeft.artifact import write_atomic
from edgeft.bench.host import describe_host, versions
from edgeft.console import silent_log

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from tests.json_schemas import SCHEMAS  # noqa: E402

NANO = HERE.parent / "edgeft" / "assets" / "nano"
N_NEW, LIMIT = 600, 1.25
TASKS = (
    "turn on the light in the kitchen",
    "play some music by the piano at eight",
    "add milk, bread and 12 eggs to my list",
    "what is the weather like in Paris tomorrow?",
    "stell einen Timer auf zehn Minuten",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=1000, help="Of each backend.")
    parser.add_argument("--gguf", type=Path, help="[the embedded base as Q4_K_M]")
    parser.add_argument("--onnx", type=Path, help="[the embedded base as int4]")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "constrained_output.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        paths = {
            "llama.cpp": arguments.gguf or make_gguf(Path(scratch)),
            "onnxruntime": arguments.onnx or make_onnx(Path(scratch)),
        }
        backends = {name: measured(path, arguments) for name, path in paths.items()}
    result = {
        "host": describe_host(),
        "backend": versions(["llama-cpp-python", "onnxruntime", "llguidance", "jsonschema-rs"]),
        "settings": {"generations": arguments.generations, "threads": arguments.threads, "max_new_tokens": N_NEW},
        "load": os.getloadavg()[0],
        "limit": LIMIT,
        "backends": backends,
    }
    write_atomic(arguments.out, json.dumps(result, indent=2) + "\n")
    print(json.dumps({name: found["summary"] for name, found in backends.items()}, indent=2))


def make_gguf(folder: Path) -> Path:
    """The embedded base as Q4_K_M, in `folder`."""
    from edgeft.export.gguf import write_gguf

    path = folder / "nano.gguf"
    write_gguf(NANO, path, ftype="Q4_K_M", name="nano", provenance={}, log=silent_log())
    return path


def make_onnx(folder: Path) -> Path:
    """The embedded base as int4, in `folder`."""
    from edgeft.export.onnx.export import export_onnx
    from edgeft.export.onnx.settings import OnnxSettings

    (record,) = export_onnx(NANO, folder, entries=[OnnxSettings()], provenance={}, log=silent_log())
    return (folder / record["file"]).parent


def measured(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All answers of one backend, what is wrong with any, and the two latencies."""
    with runtime.load(path, n_ctx=1024, n_threads=arguments.threads) as model:
        for name, schema in SCHEMAS.items():  # compiled, and the model's memory touched
            answered(model, name, schema, 0)
        runs = [
            answered(model, name, SCHEMAS[name], number)
            for number, name in zip(range(arguments.generations), _names(), strict=False)
        ]
    return {
        "summary": summary(runs),
        "schemas": {name: summary([r for r in runs if r["schema"] == name]) for name in SCHEMAS},
    }


def _names() -> Any:
    while True:
        yield from SCHEMAS


def answered(model: runtime.Model, name: str, schema: dict[str, Any], number: int) -> dict[str, Any]:
    """One constrained answer and a free one beside it."""
    messages = [
        {"role": "system", "content": "Answer in JSON."},
        {"role": "user", "content": TASKS[number % len(TASKS)]},
    ]
    sampling: Any = {"temperature": 1.0, "seed": number} if number // len(SCHEMAS) % 2 else {}
    started = ended = time.perf_counter()
    with model.chat(messages, schema=schema, stream=True, max_new_tokens=N_NEW, **sampling) as stream:
        for at, _ in enumerate(stream):
            ended = time.perf_counter()
            started = ended if at == 0 else started
    tokens = stream.answer.n_new
    ids = model.tokenize(model.render(messages))
    times = [time.perf_counter() for _ in model.stream(ids, max_new_tokens=tokens, ignore_eos=True, **sampling)]
    return {
        "schema": name,
        "problem": problem(schema, stream.answer),
        "tokens": tokens,
        "constrained_s": ended - started,
        "free_s": times[-1] - times[0],
    }


def problem(schema: dict[str, Any], answer: runtime.Answer) -> str | None:
    """What is wrong with an answer."""
    if answer.finish_reason != "stop":
        return f"{answer.finish_reason}: {answer.text!r}"
    try:
        jsonschema_rs.validate(schema, json.loads(answer.text))
    except (ValueError, jsonschema_rs.ValidationError) as error:
        return f"{error}: {answer.text!r}"
    return None


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Share of valid answers, and latencies in milliseconds."""
    between = sum(run["tokens"] - 1 for run in runs) or 1
    constrained, free = (sum(run[key] for run in runs) / between * 1e3 for key in ("constrained_s", "free_s"))
    return {
        "n": len(runs),
        "valid": sum(run["problem"] is None for run in runs) / len(runs),
        "problems": [run["problem"] for run in runs if run["problem"]][:5],
        "tokens": sum(run["tokens"] for run in runs),
        "itl_ms_constrained": constrained,
        "itl_ms_free": free,
        "itl_ratio": constrained / free if free else None,
    }


if __name__ == "__main__":
    main()
