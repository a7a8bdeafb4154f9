"""The importance matrix against llama-imatrix's, on the same tokens.

    python benchmarks/imatrix.py --llama-tools FOLDER --text FILE [--model FOLDER ...] [--chunks 16] [--threads 1]

FOLDER holds llama-imatrix, built from the llama.cpp source that llama-cpp-python vendors. Trained models: the
embedded base, and any given. Each is written as F32, so that all three compute with the same weights: llama-imatrix
(`-c 512 --no-ppl --parse-special`), our collection in torch and our collection through llama.cpp's eval callback.
Reported for each tensor's mean squares: the largest relative difference of a column, and the difference of the sums.
Wall seconds include loading; a load average stands beside them.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.artifact import write_atomic
from edgeft.bench.host import describe_host
from edgeft.console import silent_log
from edgeft.export.folder import open_checkpoint, read_folder
from edgeft.export.gguf import write_gguf
from edgeft.export.gguf.architectures.layout import lay_out
from edgeft.quant.collect import importance_of_folder
from edgeft.quant.collect_gguf import importance_of_file
from edgeft.quant.imatrix import Imatrix, read_imatrix

ROOT = Path(__file__).resolve().parent.parent
NANO = ROOT / "edgeft" / "assets" / "nano"
CHUNK_SIZE = 512
LIMIT = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-tools", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--model", type=Path, action="append", default=[])
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "imatrix.json")
    arguments = parser.parse_args()
    rows = {folder.name: _compare(folder, arguments) for folder in (NANO, *arguments.model)}
    worst = max(row[ours]["largest_column_difference"] for row in rows.values() for ours in ("torch", "callback"))
    result = {
        "host": describe_host(),
        "settings": {"chunk_size": CHUNK_SIZE, "chunks": arguments.chunks, "threads": arguments.threads},
        "text": arguments.text.name,
        "models": rows,
        "largest_column_difference": worst,
        "passed": worst <= LIMIT,
    }
    write_atomic(arguments.out, json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def _compare(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    layout = lay_out(read_folder(folder), open_checkpoint(folder))
    tensors = {rule.name: rule.sources for rule in layout.rules}
    options: dict[str, Any] = {"examples": None, "text": arguments.text, "chunk_size": CHUNK_SIZE, "log": silent_log()}
    options["max_tokens"] = CHUNK_SIZE * arguments.chunks
    with tempfile.TemporaryDirectory() as scratch:
        file, stored = Path(scratch) / "f32.gguf", Path(scratch) / "imatrix.gguf"
        write_gguf(folder, file, ftype="F32", name=folder.name, provenance={}, log=silent_log())
        peer_s, _ = _timed(lambda: _llama_imatrix(file, stored, arguments))
        peer = read_imatrix(stored)
        torch_s, by_torch = _timed(lambda: importance_of_folder(folder, tensors, **options))
        file_s, by_file = _timed(lambda: importance_of_file(file, **options, n_threads=arguments.threads))
    tokens = {int(count) for matrix in (peer, by_torch, by_file) for count in matrix.counts.values()}
    if len(tokens) != 1:
        raise SystemExit(f"{folder}: not the same number of tokens: {tokens}")
    return {
        "tokens": tokens.pop(),
        "tensors": len(peer.sums),
        "load": os.getloadavg()[0],
        "llama-imatrix": {"wall_s": peer_s},
        "torch": {"wall_s": torch_s, **_difference(peer, by_torch)},
        "callback": {"wall_s": file_s, **_difference(peer, by_file)},
    }


def _llama_imatrix(file: Path, out: Path, arguments: argparse.Namespace) -> None:
    command = [str(arguments.llama_tools / "llama-imatrix"), "-m", str(file), "-f", str(arguments.text), "-o", str(out)]
    command += ["-c", str(CHUNK_SIZE), "--chunks", str(arguments.chunks), "-t", str(arguments.threads)]
    command += ["--no-ppl", "--parse-special"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"llama-imatrix failed:\n{done.stderr[-3000:]}")


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return round(time.perf_counter() - start, 3), result


def _difference(peer: Imatrix, ours: Imatrix) -> dict[str, Any]:
    """Over all tensors of `peer`, whose names ours must have."""
    if set(peer.sums) != set(ours.sums):
        raise SystemExit(f"other tensors: {sorted(set(peer.sums) ^ set(ours.sums))[:5]}")
    columns, sums = {}, {}
    for name, theirs in peer.sums.items():
        columns[name] = float((np.abs(ours.sums[name] - theirs) / np.maximum(theirs, np.finfo(np.float32).tiny)).max())
        sums[name] = float(abs(ours.sums[name].sum() / theirs.sum() - 1))
    worst = max(columns, key=lambda name: columns[name])
    return {
        "largest_column_difference": columns[worst],
        "in": worst,
        "largest_difference_of_sums": max(sums.values()),
    }


if __name__ == "__main__":
    main()
