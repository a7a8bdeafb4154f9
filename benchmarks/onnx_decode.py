"""Decode speed of our ONNX graphs in our runtime, against onnxruntime-genai on its own build of the same model.

    python benchmarks/onnx_decode.py --genai PATH [--traced FOLDER] [--models NAME ...] [--threads 1 2]
        [--dtypes fp32 int8 int4] [--deals 6] [--rounds 3] [--scratch FOLDER] [--out FILE]

PATH is where onnxruntime-genai and its builder's needs are installed (for PYTHONPATH; ONNXRUNTIME_GENAI). Models of
random weights in the shapes of SmolLM2-135M and Qwen2.5-0.5B, made here as `gguf_export.py` makes them. Both run on
the same onnxruntime build where the installation lets them, with the same threads, the same prompt and the same
number of greedy tokens. Ours is also run on genai's own graph, which tells graph from runtime. FOLDER holds graphs
traced by transformers' exporter, `<model>-<dtype>/`, for ours and for a plain loop of onnxruntime's `session.run`.

Every contender is a process. In each round all generate the same answer, one after the other, in an order that turns:
a ratio is that of two turns of one round, a few seconds apart. Which memory a process is dealt moves its speed by
some percent for as long as it lives, so all are started anew for each deal of a few rounds. Reported are the median of
a deal's rounds and, of these, the median, the lowest and the highest. Tokens a second are of those behind the first;
`cpu_ms` is the processor time of a token, all threads; `python_us` the processor time a token of ours spends outside
onnxruntime's call.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gguf_export import make_model
from peers import result_file

from edgeft.bench.host import describe_host, versions
from edgeft.console import silent_log
from edgeft.machine.silence import no_telemetry

ROOT = Path(__file__).resolve().parent.parent
N_PROMPT, N_GEN = 16, 32
PROMPT = list(range(5, 5 + N_PROMPT))
GENAI_PRECISION = {"fp32": "fp32", "int8": "int8", "int4": "int4"}

GENAI = """
import json, sys, time
import onnxruntime_genai as og
folder, threads, prompt, n = sys.argv[1], *map(json.loads, sys.argv[2:])
config = og.Config(folder)
config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
model = og.Model(config)
for _ in sys.stdin:
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + n, min_length=len(prompt) + n, do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(prompt)
    made = []
    for _ in range(n):
        generator.generate_next_token()
        made.append((time.perf_counter(), time.process_time()))
    whole, cpu = (made[-1][at] - made[0][at] for at in (0, 1))
    tokens = [int(token) for token in generator.get_sequence(0)][len(prompt):]
    found = {"tokens_per_s": (n - 1) / whole, "cpu_ms": cpu / (n - 1) * 1e3}
    print(json.dumps(found | {"tokens": tokens, "version": og.__version__}), flush=True)
"""

PLAIN = """
import json, sys, time
import numpy as np
import onnxruntime
folder, threads, prompt, n = sys.argv[1], *map(json.loads, sys.argv[2:])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
options.log_severity_level = 3
session = onnxruntime.InferenceSession(folder + "/model.onnx", options, providers=["CPUExecutionProvider"])
puts = {put.name: put for put in session.get_inputs()}
pasts = [name for name in puts if name.startswith("past_key_values")]
names = ["logits", *(name.replace("past_key_values", "present") for name in pasts)]
config = json.load(open(folder + "/config.json"))
shape = (1, config["num_key_value_heads"], 0, config["hidden_size"] // config["num_attention_heads"])
for _ in sys.stdin:
    past = {name: np.zeros(shape, np.float32) for name in pasts}
    ids, total, tokens, made = prompt, 0, [], []
    for _ in range(n):
        positions = np.arange(total, total + len(ids))[None]
        total += len(ids)
        mask = np.ones((1, total), np.int64)
        given = {"input_ids": np.array([ids]), "attention_mask": mask, "position_ids": positions}
        logits, *present = session.run(names, {name: given[name] for name in given if name in puts} | past)
        past = dict(zip(pasts, present))
        ids = [int(logits[0, -1].argmax())]
        tokens += ids
        made.append((time.perf_counter(), time.process_time()))
    whole, cpu = (made[-1][at] - made[0][at] for at in (0, 1))
    print(json.dumps({"tokens_per_s": (n - 1) / whole, "cpu_ms": cpu / (n - 1) * 1e3, "tokens": tokens}), flush=True)
"""


def main() -> None:
    no_telemetry()  # children inherit it
    if sys.argv[1:2] == ["--ours"]:
        answer_turns(Path(sys.argv[2]), int(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genai", type=Path, default=os.environ.get("ONNXRUNTIME_GENAI"))
    parser.add_argument("--traced", type=Path)
    parser.add_argument("--models", nargs="+", default=["smollm2-135m", "qwen2.5-0.5b"])
    parser.add_argument("--model-folder", type=Path, help="A model folder instead of the shapes.")
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "int8", "int4"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--deals", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="Where models and graphs are made. [a temporary folder]")
    parser.add_argument("--out", type=Path, default=result_file("onnx_decode.json"))
    arguments = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        for model in [arguments.model_folder.name] if arguments.model_folder else arguments.models:
            folder = arguments.model_folder or make_model(Path(scratch) / model, model)
            for dtype in arguments.dtypes:
                graphs = make_graphs(folder, Path(scratch) / f"{model}-{dtype}", model, dtype, arguments)
                runs += measured(model, dtype, graphs, arguments)
                result = {
                    "host": describe_host(),
                    "versions": versions(("onnxruntime",)),
                    **compared(runs),
                    "runs": runs,
                }
                arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(compared(runs), indent=2))


def make_graphs(
    folder: Path, out: Path, model: str, dtype: str, arguments: argparse.Namespace
) -> dict[str, tuple[str, Path]]:
    """contender -> (runtime, folder)"""
    from edgeft.export.onnx.export import export_onnx
    from edgeft.export.onnx.settings import OnnxSettings

    entry: Any = OnnxSettings(dtype=dtype)
    export_onnx(folder, out, entries={"ours": entry}, provenance={}, log=silent_log())
    graphs = {"edgeft": ("ours", out / "ours")}
    if arguments.genai:
        command = [
            sys.executable,
            "-m",
            "onnxruntime_genai.models.builder",
            "-i",
            str(folder),
            "-o",
            str(out / "genai"),
        ]
        command += ["-p", GENAI_PRECISION[dtype], "-e", "cpu", "-c", str(out / "cache")]
        run(command, {"PYTHONPATH": str(arguments.genai)})
        graphs["onnxruntime-genai"] = ("genai", out / "genai")
        graphs["edgeft on genai's graph"] = ("ours", out / "genai")
        graphs["onnxruntime-genai on ours"] = ("genai", out / "ours")
    if arguments.traced and (arguments.traced / f"{model}-{dtype}").is_dir():
        graphs["edgeft on the traced graph"] = ("ours", arguments.traced / f"{model}-{dtype}")
        graphs["onnxruntime on the traced graph"] = ("plain", arguments.traced / f"{model}-{dtype}")
    return graphs


def measured(
    model: str, dtype: str, graphs: dict[str, tuple[str, Path]], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Every contender in turn, `rounds` times behind one that warms them up, in new processes for each deal."""
    return [
        {"model": model, "dtype": dtype, "threads": threads, "deal": deal} | run
        for threads in arguments.threads
        for deal in range(arguments.deals)
        for run in one_deal(graphs, threads, deal, arguments)
    ]


def one_deal(
    graphs: dict[str, tuple[str, Path]], threads: int, deal: int, arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """The rounds of one set of processes."""
    with ExitStack() as stack:
        workers = {
            contender: stack.enter_context(worker(runtime, folder, threads, arguments.genai))
            for contender, (runtime, folder) in graphs.items()
        }
        answers: dict[str, list[int]] = {}
        for number in range(arguments.rounds + 1):
            at = (deal + number) % len(workers)
            load = round(os.getloadavg()[0], 2)
            for contender in [*workers, *workers][at : at + len(workers)]:
                found = turn(workers[contender])
                tokens = found.pop("tokens")
                if answers.setdefault(contender, tokens) != tokens:
                    raise SystemExit(f"{contender} answered differently the second time")
                if number:
                    print(json.dumps({"contender": contender, "threads": threads, "deal": deal} | found), flush=True)
                    yield {"contender": contender, "round": number, "load_before": load} | found


def worker(runtime: str, folder: Path, threads: int, genai: Path) -> subprocess.Popen[str]:
    """A process that generates one answer for each line it gets."""
    command, environment = [sys.executable, __file__, "--ours", str(folder), str(threads)], {}
    if script := {"genai": GENAI, "plain": PLAIN}.get(runtime):
        command = [sys.executable, "-c", script, str(folder), *(json.dumps(each) for each in (threads, PROMPT, N_GEN))]
    if runtime == "genai":
        environment = {"PYTHONPATH": str(genai)}
    return subprocess.Popen(
        command, env=os.environ | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


def turn(process: subprocess.Popen[str]) -> dict[str, Any]:
    """One answer of a worker."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
    raise SystemExit(f"{' '.join(map(str, process.args[:6]))} ended")  # type: ignore[index]


def answer_turns(folder: Path, threads: int) -> None:
    """Our runtime as a worker."""
    from edgeft.runtime.onnx import OnnxModel

    with OnnxModel(folder, n_ctx=1024, n_threads=threads) as model:
        clock = _Clock(model._decoder)
        for _ in sys.stdin:
            stream = model.stream(PROMPT, max_new_tokens=N_GEN, ignore_eos=True)
            tokens = [next(stream)]
            start = (time.perf_counter(), time.process_time(), time.thread_time() - clock.seconds)
            tokens += stream
            end = (time.perf_counter(), time.process_time(), time.thread_time() - clock.seconds)
            n = len(tokens) - 1
            whole, cpu, outside = ((after - before) / n for before, after in zip(start, end, strict=True))
            found = {"tokens_per_s": 1 / whole, "cpu_ms": cpu * 1e3, "python_us": outside * 1e6, "tokens": tokens}
            print(json.dumps(found), flush=True)


class _Clock:
    """Stands in for a decoder's session and adds up the calling thread's processor time inside onnxruntime."""

    def __init__(self, decoder: Any) -> None:
        self._session, self.seconds = decoder.session, 0.0
        decoder.session = self

    def run_with_iobinding(self, binding: Any) -> None:
        start = time.thread_time()
        self._session.run_with_iobinding(binding)
        self.seconds += time.thread_time() - start

    def run_with_ort_values(self, names: Sequence[str], values: Any) -> Any:
        start = time.thread_time()
        made = self._session.run_with_ort_values(names, values)
        self.seconds += time.thread_time() - start
        return made


def run(command: list[str], environment: dict[str, str]) -> None:
    """Run `command` to its end."""
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:6])} failed:\n{done.stderr[-3000:]}")


def compared(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians by model, type, threads and contender; ours over every other's tokens a second."""
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for one in runs:
        key = f"{one['model']} {one['dtype']} {one['threads']}t"
        groups.setdefault(key, {}).setdefault(one["contender"], []).append(one)
    median = {
        key: {
            contender: {
                number: round(statistics.median(turn[number] for turn in turns), 2)
                for number in ("tokens_per_s", "cpu_ms", "python_us")
                if number in turns[0]
            }
            for contender, turns in by_contender.items()
        }
        for key, by_contender in groups.items()
    }
    ratios = {
        key: {
            other: summary(by_contender["edgeft"], turns) for other, turns in by_contender.items() if other != "edgeft"
        }
        for key, by_contender in groups.items()
    }
    return {"median": median, "ratios": ratios}


def summary(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, float]:
    """Ours over theirs: of the median of each deal the median, the lowest and the highest."""
    by_deal: dict[int, list[float]] = {}
    for mine, other in zip(ours, theirs, strict=True):
        by_deal.setdefault(mine["deal"], []).append(mine["tokens_per_s"] / other["tokens_per_s"])
    deals = [statistics.median(ratios) for ratios in by_deal.values()]
    found = {"median": statistics.median(deals), "lowest": min(deals), "highest": max(deals)}
    return {key: round(value, 3) for key, value in found.items()}


if __name__ == "__main__":
    main()
