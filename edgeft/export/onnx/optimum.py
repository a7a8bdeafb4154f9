"""Export by Hugging Face's optimum-onnx, which excludes transformers 5 and so lives in an environment of its own."""

import shutil
from pathlib import Path
from typing import Any

from edgeft.artifact import list_files
from edgeft.children import how_it_ended, run_to_end
from edgeft.console import Log
from edgeft.errors import MissingExtra, RuntimeFault

PROGRAM = "optimum-cli"
SILENCE_S = 1800.0
"""Tracing a large model says nothing for minutes; a program that says nothing for so long hangs."""


def export_with_optimum(model_dir: Path, out: Path, *, task: str | None, log: Log) -> list[dict[str, Any]]:
    """Run `optimum-cli export onnx` of the PATH on the folder `model_dir`; one record for each graph in `out`.

    Raises MissingExtra when there is no such program, RuntimeFault with its last words when it fails.
    """
    program = shutil.which(PROGRAM)
    if program is None:
        raise MissingExtra(
            f"{PROGRAM} is not on the PATH; install optimum-onnx in an environment of its own (it excludes "
            "transformers 5) and put that environment's bin folder on the PATH, or take --exporter edgeft"
        )
    command = [program, "export", "onnx", "--model", str(model_dir), "--task", task or "auto", str(out)]
    log.say(" ".join(command))
    done = run_to_end(command, PROGRAM, silence_s=SILENCE_S)
    graphs = sorted(out.rglob("*.onnx"))
    if done.code or not graphs:
        said = "\n".join(f"  {line}" for line in done.last_lines()) or "  it said nothing"
        raise RuntimeFault(f"{PROGRAM} {how_it_ended(done.code)} and made {len(graphs)} graphs; it said\n{said}")
    n_bytes = {graph: _bytes(graph) for graph in graphs}
    return [
        {"file": graph.relative_to(out).as_posix(), "format": "onnx", "dtype": "fp32", "bytes": n_bytes[graph]}
        for graph in graphs
    ]


def _bytes(graph: Path) -> int:
    """Of a graph and the weights beside it."""
    names = [name for name in list_files(graph.parent) if name.startswith(graph.name)]
    return sum((graph.parent / name).stat().st_size for name in names)
