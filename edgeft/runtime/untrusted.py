"""Try a model file of unknown origin in a child process: what crashes or hangs the runtime takes only the child.

The checks of `edgeft.runtime.header` and `onnx_file` know what llama.cpp and onnxruntime do not survive or must not
open; this is for what they do not know. The child loads the file, renders its chat template, runs a prompt and
generates a few tokens, within a time and a memory limit. As a program (`python -m edgeft.runtime.untrusted`) this
module is that child: an order (JSON) on stdin, one JSON object on stdout.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from edgeft.children import ask_once
from edgeft.errors import EdgeftError, RuntimeFault
from edgeft.machine.process import limit_memory
from edgeft.runtime.header import check_gguf
from edgeft.runtime.loading import load
from edgeft.runtime.onnx_file import check_onnx, find_file, holds_onnx

if TYPE_CHECKING:
    from edgeft.runtime.model import Model

CHILD = (sys.executable, "-m", "edgeft.runtime.untrusted")
TIMEOUT_S = 120.0
MEMORY_BASE_BYTES = 4 << 30
"""Address space of the child beyond three times the file: interpreter, libraries, stacks of threads, context."""
N_CTX, N_GENERATED = 256, 4
TEXT = "Hello, 1 2 3"


@dataclass(frozen=True)
class Probe:
    """A file that loads and runs. `template_error` is why its chat template does not render, None when it does or
    there is none; `n_generated` is 0 for an encoder, which is only loaded."""

    load_ms: float
    n_vocab: int
    n_prompt: int
    n_generated: int
    template_error: str | None


def probe(path: Path, *, timeout_s: float = TIMEOUT_S, command: Sequence[str] = CHILD) -> Probe:
    """Load the model `path` and decode a few tokens, in a child process of at most `timeout_s` seconds.

    Raises ModelError when the header is refused (no child is started), RuntimeFault when the runtime refuses the
    file, is killed by a signal, takes too long, wants too much memory, or computes logits that are not finite or all
    the same.
    `command` is the child to run; tests give one that misbehaves.
    """
    n_bytes = check_onnx(find_file(path)[0]).weight_bytes if holds_onnx(path) else check_gguf(path).n_bytes
    order = {"path": str(path), "memory_bytes": 3 * n_bytes + MEMORY_BASE_BYTES}
    result = ask_once(
        command,
        f"{path}: the runtime, which tried this file,",
        timeout_s,
        order=order,
        fields={field.name for field in fields(Probe)},
        environment={"GGML_NO_BACKTRACE": "1"},  # on an abort ggml would start a debugger
    )
    return Probe(**result)


def main() -> int:
    """Be the child: try the file as ordered and return the exit code."""
    order = json.load(sys.stdin)
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever the backend prints is no answer
    limit_memory(order["memory_bytes"])
    try:
        result = asdict(_try(Path(order["path"])))
    except EdgeftError as error:
        result = {"error": type(error).__name__, "message": str(error)}
    except MemoryError:
        message = f"{order['path']}: it wants more than {order['memory_bytes'] / 1e9:.1f} GB of memory"
        result = {"error": "RuntimeFault", "message": message}
    with answer:
        json.dump(result, answer)
    return 0


def _try(path: Path) -> Probe:
    started = time.perf_counter()
    model = load(path, n_ctx=N_CTX, n_threads=1)
    load_ms = round((time.perf_counter() - started) * 1e3, 3)
    with model:
        template_error = _render(model)
        if _is_encoder(model):
            return Probe(load_ms, model.n_vocab, 0, 0, template_error)
        prompt = _prompt(model)
        _check_logits(path, model, prompt)
        n_generated = sum(1 for _ in model.stream(prompt, max_new_tokens=N_GENERATED, ignore_eos=True))
        return Probe(load_ms, model.n_vocab, len(prompt), n_generated, template_error)


def _render(model: "Model") -> str | None:
    """Why the template of the file cannot be used, if there is one and it cannot."""
    if not model.metadata.get("tokenizer.chat_template"):
        return None
    try:
        model.tokenize(model.render([{"role": "user", "content": TEXT}]))
    except EdgeftError as error:
        return str(error)
    return None


def _is_encoder(model: "Model") -> bool:
    architecture = model.metadata.get("general.architecture", "")
    return model.metadata.get(f"{architecture}.attention.causal") == "false"


def _prompt(model: "Model") -> list[int]:
    """A few tokens of text; ids 0 and 1 where the vocabulary cannot write it."""
    try:
        ids = model.tokenize(TEXT)
    except RuntimeFault:
        ids = []
    return (ids or [0, min(1, model.n_vocab - 1)])[: max(1, model.n_ctx - N_GENERATED)]


def _check_logits(path: Path, model: "Model", prompt: list[int]) -> None:
    """Weights that are damaged but in range show here first."""
    import numpy as np  # a part of every backend; this module alone stays light

    logits = model.score(prompt)
    finite = np.isfinite(logits)
    if np.ptp(logits) == 0.0:  # what a quantized head makes of NaN: its activations are rounded to zeros
        raise RuntimeFault(
            f"{path}: every logit is {logits.flat[0]:g}, whatever the text; its weights are damaged; "
            "export or copy it again"
        )
    if not finite.all():
        raise RuntimeFault(
            f"{path}: {np.count_nonzero(~finite)} of {finite.size} logits are not finite; its weights are damaged "
            "or its hyper-parameters wrong; export or copy it again"
        )


if __name__ == "__main__":
    sys.exit(main())
