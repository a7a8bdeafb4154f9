"""Export by Hugging Face's optimum-onnx, which excludes transformers 5 and so lives in an environment of its own."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

from edgeft.artifact import list_files
from edgeft.console import Log
from edgeft.errors import MissingExtra, RuntimeFault

PROGRAM = "optimum-cli"


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
    done = subprocess.run(command, capture_output=True, text=True)
    graphs = sorted(out.rglob("*.onnx"))
    if done.returncode or not graphs:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise RuntimeFault(f"{PROGRAM} failed ({done.returncode}): {words[-1] if words else 'it said nothing'}")
    n_bytes = {graph: _bytes(graph) for graph in graphs}
    return [
        {"file": graph.relative_to(out).as_posix(), "format": "onnx", "dtype": "fp32", "bytes": n_bytes[graph]}
        for graph in graphs
    ]


def _bytes(graph: Path) -> int:
    """Of a graph and the weights beside it."""
    names = [name for name in list_files(graph.parent) if name.startswith(graph.name)]
    return sum((graph.parent / name).stat().st_size for name in names)
