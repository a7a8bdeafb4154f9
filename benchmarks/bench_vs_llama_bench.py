"""Prompt and decode speed as edgeft reports them, against llama.cpp's own llama-bench.

    python benchmarks/bench_vs_llama_bench.py --llama-bench PATH [--rounds 5] [--turns 8] [--shapes smollm2-135m ...]

llama-bench must be built, with shared libraries, from the llama.cpp source that llama-cpp-python vendors; it is made
to load the very libraries that edgeft loads, so that no flag differs. Random weights of two real shapes (as Llama, the
head tied) are exported to Q8_0. In turns, in fresh processes, who comes first changing from turn to turn, with the
same number of threads: llama-bench runs `-p P`, and `-n N -d P` for N tokens decoded behind P; edgeft measures P:2
synthetic tokens, and P:N+1, so N gaps behind the same P. (A prompt after N decoded tokens is slower than one after
another prompt, which is all that llama-bench repeats.)

A turn lasts a second, and on a shared machine one turn of llama-bench is up to 1.5 times as fast as its next. Other
work can only slow a turn, so the rate of a round is that of its fastest turn, for both. `passed`: the medians of the
rounds are within 3 %. `all_turns` has the medians of all turns, which need hundreds of turns to agree that well.
`outside_llama_decode` is the share of edgeft's time that is not llama.cpp's, from one process whose calls of
llama_decode are timed: what our own code adds.
"""

import argparse
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peers import HERE, SHAPES

from edgeft.artifact import write_atomic
from edgeft.bench.backends import Setup
from edgeft.bench.host import describe_host, versions
from edgeft.bench.latency import LatencyPlan, measure
from edgeft.console import silent_log

TOLERANCE = 0.03
LIBRARIES = Path(importlib.util.find_spec("llama_cpp").origin).parent / "lib"
TOOLS = ("llama-bench", "edgeft")
RATES = ("prompt_tokens_per_s", "decode_tokens_per_s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-bench", type=Path, required=True, help="The program.")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["smollm2-135m", "qwen2.5-0.5b"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=8, help="Of each, in a round.")
    parser.add_argument("--n-prompt", type=int, default=128)
    parser.add_argument("--n-gen", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=1, help="Within one turn, of both.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", type=Path, help="Folder to keep the made models in. [a temporary one]")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "bench_vs_llama_bench.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        files = {shape: make_file(shape, arguments.models or Path(scratch)) for shape in arguments.shapes}
        runs = [
            {"shape": shape, "round": number, **turn(file, arguments, llama_bench_first=k % 2 == 0)}
            for shape, file in files.items()
            for number in range(arguments.rounds)
            for k in range(arguments.turns)
        ]
        outside = {shape: outside_llama_decode(file, arguments) for shape, file in files.items()}
    shapes = {
        shape: compared([run for run in runs if run["shape"] == shape]) | {"outside_llama_decode": outside[shape]}
        for shape in files
    }
    settings = {
        name: getattr(arguments, name) for name in ("rounds", "turns", "n_prompt", "n_gen", "repetitions", "threads")
    }
    result = {
        "host": describe_host(),
        "backend": versions(["llama-cpp-python"]),
        "settings": settings | {"nice": os.nice(0), "ftype": "Q8_0"},
        "shapes": shapes,
        "runs": runs,
    }
    write_atomic(arguments.out, json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["shapes"], indent=2))


def make_file(shape: str, folder: Path) -> Path:
    """A Q8_0 file of a random Llama of this shape in `folder`, made when it is not there."""
    path = folder / f"{shape}-Q8_0.gguf"
    if path.exists():
        return path
    import gguf
    import numpy as np

    sizes, draw = SHAPES[shape], np.random.default_rng(0)
    hidden, heads, vocab = sizes["hidden_size"], sizes["num_attention_heads"], sizes["vocab_size"]
    kv_width, inner = sizes["num_key_value_heads"] * hidden // heads, sizes["intermediate_size"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(sizes["num_hidden_layers"])
    writer.add_context_length(2048)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(sizes["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{i}" for i in range(vocab)])
    writer.add_token_merges(["t 0"])
    writer.add_eos_token_id(0)

    def add(name: str, rows: int, columns: int) -> None:
        values = draw.standard_normal((rows, columns), np.float32) * np.float32(0.02)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", vocab, hidden)
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    for layer in range(sizes["num_hidden_layers"]):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(hidden, np.float32))
        for name, rows, columns in (
            ("attn_q", hidden, hidden), ("attn_k", kv_width, hidden), ("attn_v", kv_width, hidden),
            ("attn_output", hidden, hidden), ("ffn_gate", inner, hidden), ("ffn_up", inner, hidden),
            ("ffn_down", hidden, inner),
        ):  # fmt: skip
            add(f"blk.{layer}.{name}.weight", rows, columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def turn(file: Path, arguments: argparse.Namespace, *, llama_bench_first: bool) -> dict[str, Any]:
    """One measurement by each, with the load before."""
    load = round(os.getloadavg()[0], 2)
    tools = [("llama-bench", by_llama_bench), ("edgeft", by_edgeft)]
    measured = {name: tool(file, arguments) for name, tool in (tools if llama_bench_first else tools[::-1])}
    return {"load_before": load, "first": next(iter(measured)), **measured}


def by_llama_bench(file: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Rates pooled over the repetitions: tokens of all / nanoseconds of all."""
    words = {"-m": file, "-t": arguments.threads, "-r": arguments.repetitions, "-o": "json", "-ub": 512, "-fa": "auto"}
    common = [str(arguments.llama_bench), *(str(word) for pair in words.items() for word in pair)]
    prompt, decode = arguments.n_prompt, arguments.n_gen
    tests = {
        "prompt_tokens_per_s": (["-p", str(prompt), "-n", "0"], prompt),
        "decode_tokens_per_s": (["-p", "0", "-n", str(decode), "-d", str(prompt)], decode),
    }
    environment = os.environ | {"LD_LIBRARY_PATH": str(LIBRARIES)}
    found = {}
    for rate, (test, tokens) in tests.items():
        done = subprocess.run([*common, *test], capture_output=True, text=True, check=True, env=environment)
        samples = json.loads(done.stdout)[0]["samples_ns"]
        found[rate] = 1e9 * tokens * len(samples) / sum(samples)
    return found


def by_edgeft(file: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """What `edgeft bench` reports, each rate from a process of its own."""
    prompt, setup = (
        arguments.n_prompt,
        Setup(n_ctx=arguments.n_prompt + arguments.n_gen + 1, n_threads=arguments.threads),
    )
    found: dict[str, Any] = {"setup": asdict(setup)}
    for rate, n_gen in zip(RATES, (2, arguments.n_gen + 1), strict=True):
        lengths = ((prompt, n_gen),)
        plan = LatencyPlan(synthetic=lengths, repetitions=arguments.repetitions, cold_loads=1, reloads=0)
        measured = measure(file, [], plan, setup, log=silent_log())
        found |= {rate: measured.summary()[rate], f"noise_{rate}": measured.noise()}
    return found


def outside_llama_decode(file: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Share of the time to the first token, and after it, that is spent outside llama.cpp's `llama_decode`."""
    from edgeft import runtime
    from edgeft.runtime.llama_library import llama_cpp

    inside = 0.0
    decode = llama_cpp.llama_decode

    def timed(*given: Any) -> int:
        nonlocal inside
        started = time.perf_counter()
        status: int = decode(*given)
        inside += time.perf_counter() - started
        return status

    with runtime.load(file, n_ctx=arguments.n_prompt + arguments.n_gen, n_threads=arguments.threads) as model:
        llama_cpp.llama_decode = timed
        tokens = model.stream(range(arguments.n_prompt), max_new_tokens=arguments.n_gen, ignore_eos=True)
        parts = {}
        for part, wanted in (("prompt", 1), ("decode", arguments.n_gen - 1)):
            inside, started = 0.0, time.perf_counter()
            assert len(list(itertools.islice(tokens, wanted))) == wanted
            parts[part] = 1 - inside / (time.perf_counter() - started)
        llama_cpp.llama_decode = decode
    return parts


def compared(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Rates of both, edgeft's over llama-bench's, and whether the rounds agree."""
    rounds = [list(group) for _, group in itertools.groupby(turns, key=lambda turn: turn["round"])]
    fastest = [{who: {r: max(turn[who][r] for turn in group) for r in RATES} for who in TOOLS} for group in rounds]
    found: dict[str, Any] = {}
    for name, of in (("median_of_rounds", fastest), ("all_turns", turns)):
        rates = {who: {r: statistics.median(one[who][r] for one in of) for r in RATES} for who in TOOLS}
        found[name] = rates | {"ratio": {rate: rates["edgeft"][rate] / rates["llama-bench"][rate] for rate in RATES}}
    agreed = all(abs(ratio - 1) <= TOLERANCE for ratio in found["median_of_rounds"]["ratio"].values())
    return found | {"passed": agreed}


if __name__ == "__main__":
    main()
