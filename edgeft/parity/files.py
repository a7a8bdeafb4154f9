"""Comparing files with the folder they were made from, without a recipe."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeft.console import Log
from edgeft.errors import DataError, UsageError
from edgeft.parity.arguments import check_inputs
from edgeft.parity.bisect import bisect
from edgeft.parity.compare import compare_forms
from edgeft.parity.finding import Finding
from edgeft.parity.forms import FormSource, Prompt, gguf_form
from edgeft.parity.torch_form import adapter_form, folder_form
from edgeft.runtime.encoder_folder import is_encoder
from edgeft.runtime.onnx_file import holds_onnx

QUESTIONS = (
    "Hello!",
    "Turn on the kitchen light.",
    "Set a timer for ten minutes.",
    "What is the weather like in Paris tomorrow?",
    "Once upon a time, there was a little girl who",
    "Write one sentence about the sea.",
    "What is 12 times 7?",
    "Translate to French: good morning",
    "I lost my card, what should I do now?",
    "Book a table for two at 7:30 pm.",
    "List three colours.",
    "Why is the sky blue?",
    "Is a tomato a fruit?",
    "naïve café, 100 % – “quoted” 😀",
    '{"a": [1, 2, 3], "b": null}',
    "Thanks, bye.",
)
"""Asked where no prompts are given."""


def compare_files(
    model_dir: Path,
    files: Sequence[Path],
    *,
    prompts: Path | None = None,
    n_gen: int = 32,
    n_threads: int | None = None,
    limits: Mapping[str, Mapping[str, float]],
    log: Log,
    adapter: Path | None = None,
) -> dict[str, Any]:
    """Compare GGUF files and ONNX folders with the model folder they were made from; the content of parity.json.

    `prompts` is chat JSONL (`{"messages": [...]}` a line; an answer at the end is left out); without it a few
    built-in questions are asked. `adapter`: the peft adapter that was folded into the files, put on the model in
    torch. A classifier reads the last message. `raise_if_bad` in `compare` turns a bad result
    into an error. Raises UsageError without files, DataError for prompts that cannot be used, and what opening the
    forms raises.
    """
    if not files:
        raise UsageError("no file to compare; name at least one GGUF file or ONNX folder")
    check_inputs(model_dir, files)
    asked = _asked(prompts)
    if all(is_encoder(path) for path in files):
        if adapter is not None:
            raise UsageError("an adapter goes with text models; merge it into the encoder first")
        from edgeft.parity.encoders import compare_encoders  # nor has everyone onnxruntime

        folders = {path.name: path for path in files}
        texts = [prompt.text for prompt in asked]
        return compare_encoders(model_dir, folders, texts, limits, n_threads=n_threads, log=log)
    reference = adapter_form("torch", model_dir, adapter, model_dir) if adapter else folder_form("torch", model_dir)
    sources = [reference, *(file_form(path.name, path, n_threads) for path in files)]
    return compare_forms(sources, asked, n_gen=n_gen, limits=limits, log=log)


def bisect_files(
    model_dir: Path, files: Sequence[Path], *, prompts: Path | None = None, n_threads: int | None = None, log: Log
) -> dict[str, Finding | None]:
    """For each file, where it first leaves the folder it was made from; None where it does not.

    `prompts` as of `compare_files`. Raises UsageError without files, DataError for prompts that cannot be used,
    and what `bisect` raises.
    """
    if not files:
        raise UsageError("no file to compare; name at least one GGUF file or ONNX folder")
    check_inputs(model_dir, files)
    asked = _asked(prompts)
    return {path.name: bisect_file(model_dir, path, asked, log, n_threads=n_threads) for path in files}


def file_form(name: str, path: Path, n_threads: int | None = None) -> FormSource:
    """A GGUF file, or an ONNX file or folder, in its runtime."""
    if not holds_onnx(path):
        return gguf_form(name, path, n_threads)
    from edgeft.parity.onnx_form import onnx_form  # whoever has no ONNX models needs no onnxruntime

    return onnx_form(name, path, n_threads)


def bisect_file(
    model_dir: Path, path: Path, prompts: Sequence[Prompt], log: Log, *, n_threads: int | None = None
) -> Finding | None:
    """`bisect`, `bisect_onnx` or, on the texts of the prompts, `bisect_encoder`, by what `path` is."""
    if not holds_onnx(path):
        return bisect(model_dir, path, prompts, log, n_threads=n_threads)
    if is_encoder(path):
        from edgeft.parity.bisect_encoder import bisect_encoder

        return bisect_encoder(model_dir, path, [prompt.text for prompt in prompts], log, n_threads=n_threads)
    from edgeft.parity.bisect_onnx import bisect_onnx

    return bisect_onnx(model_dir, path, prompts, log, n_threads=n_threads)


def _asked(prompts: Path | None) -> list[Prompt]:
    return read_prompts(prompts) if prompts else [_question(text) for text in QUESTIONS]


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a chat JSONL file. Raises DataError, with the line number, for what is not one."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    prompts = [_prompt(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise DataError(f"{path}: no prompts; give at least one line of chat JSON")
    return prompts


def _prompt(line: str, where: str) -> Prompt:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error})") from None
    messages = content.get("messages") if isinstance(content, dict) else None
    if not isinstance(messages, list) or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise DataError(f'{where}: needs "messages", a list of objects with "role" and "content"')
    if messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise DataError(f"{where}: there is no message to answer")
    return Prompt(tuple(messages), tuple(content["tools"]) if content.get("tools") else None)


def _question(text: str) -> Prompt:
    return Prompt(({"role": "user", "content": text},))
