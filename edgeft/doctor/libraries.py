"""Libraries that may crash, each asked in a child process of its own: what kills it becomes a sentence.

As a program (`python -m edgeft.doctor.libraries torch`) this module is that child: one JSON object on stdout.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from edgeft.children import ask_once
from edgeft.errors import EdgeftError

CHILD = (sys.executable, "-m", "edgeft.doctor.libraries")
TIMEOUT_S = 60.0
DISTRIBUTIONS = {"torch": "torch", "onnxruntime": "onnxruntime", "llama_cpp": "llama-cpp-python"}
"""Module -> distribution."""
SOCKETS = ("tcp", "tcp6", "udp", "udp6")

Answer = dict[str, Any] | EdgeftError
"""What a library said of itself, or how it failed."""


def ask_libraries(
    names: Sequence[str], *, command: Sequence[str] = CHILD, timeout_s: float = TIMEOUT_S
) -> dict[str, Answer]:
    """Ask each library of `names` (keys of DISTRIBUTIONS), all at once. `command` is the child; tests give another."""
    if not names:
        return {}
    with ThreadPoolExecutor(len(names)) as pool:
        answers = pool.map(lambda name: _ask(name, command, timeout_s), names)
        return dict(zip(names, answers, strict=True))


def _ask(name: str, command: Sequence[str], timeout_s: float) -> Answer:
    quiet = {"GGML_NO_BACKTRACE": "1"}  # on an abort ggml would start a debugger
    try:
        return ask_once((*command, name), DISTRIBUTIONS[name], timeout_s, environment=quiet)
    except EdgeftError as error:
        return error


def main(words: Sequence[str]) -> int:
    """Be the child: print what the library says of itself and return the exit code."""
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever the library prints is no answer
    try:
        said = ASK[words[0]]() | {"sockets": open_sockets()}
    except EdgeftError as error:
        said = {"error": type(error).__name__, "message": str(error)}
    except Exception as error:  # of a library, of any kind: its last line says what is broken
        said = {"error": "RuntimeFault", "message": f"{words[0]} does not load: {type(error).__name__}: {error}"}
    with answer:
        json.dump(said, answer)
    return 0


def _torch() -> dict[str, Any]:
    import torch

    from edgeft.quiet import quiet_libraries

    quiet_libraries()
    torch.ones(64, 64) @ torch.ones(64, 64)
    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            capability = (device.major, device.minor)
            gpus.append({"name": device.name, "memory_bytes": device.total_memory, "capability": capability})
    return {
        "version": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": gpus,
    }


def _onnxruntime() -> dict[str, Any]:
    from edgeft.runtime.onnx_session import onnxruntime  # as edgeft opens it, with its telemetry as edgeft leaves it

    telemetry = os.environ.get("ORT_DISABLE_TELEMETRY", "").lower() not in ("1", "true", "on", "yes")
    return {
        "version": onnxruntime.__version__,
        "providers": onnxruntime.get_available_providers(),
        "telemetry": telemetry,
    }


def _llama_cpp() -> dict[str, Any]:
    from edgeft.runtime.llama_build import features, llama_build, loaded_variant, start, try_products

    build = llama_build()
    start()
    try_products()
    return {
        "needs": list(build.needs),
        "variants": list(build.variants),
        "loaded": loaded_variant(),
        "features": features(),
    }


ASK: Mapping[str, Callable[[], dict[str, Any]]] = {
    "torch": _torch,
    "onnxruntime": _onnxruntime,
    "llama_cpp": _llama_cpp,
}


def open_sockets(proc: Path = Path("/proc/self")) -> list[str]:
    """Kinds of internet sockets this process has open (`tcp`, `udp6`, …); none where the system does not list them."""
    try:
        links = [os.readlink(path) for path in (proc / "fd").iterdir() if path.is_symlink()]
    except OSError:
        return []
    ours = {found[1] for link in links if (found := re.fullmatch(r"socket:\[(\d+)\]", link))}
    opened = []
    for kind in SOCKETS:
        try:
            rows = (proc / "net" / kind).read_text("utf-8").splitlines()[1:]
        except OSError:
            continue
        opened += [kind for row in rows if len(row.split()) > 9 and row.split()[9] in ours]
    return opened


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
