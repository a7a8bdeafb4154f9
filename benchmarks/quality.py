"""What the quality benchmarks of GGUF and ONNX have in common: tokens, divergences, speeds, and the result file."""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.bench.host import backend_versions, describe_host
from edgeft.machine.process import load_average
from edgeft.parity.numbers import kl_divergence, top1_agrees
from edgeft.quant.calibration import Calibration
from edgeft.quant.collect import folder_calibration
from edgeft.runtime import load

CHUNK_SIZE, N_GEN = 256, 64


def parser_of(doc: str | None, results: Path) -> argparse.ArgumentParser:
    """The arguments of both; `results` is written unless `--out` says otherwise."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("model_dir", type=Path)
    for option in ("--train", "--train-text", "--test", "--test-text"):
        parser.add_argument(option, type=Path)
    parser.add_argument("--tokens", type=int, default=8192, help="calibration tokens")
    parser.add_argument("--test-tokens", type=int, default=4096, help="held-out tokens of each kind")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--out", type=Path, default=results)
    return parser


def calibration_of(arguments: argparse.Namespace) -> Calibration:
    """What weights are rounded by."""
    return tokens_of(arguments.model_dir, arguments.train, arguments.train_text, arguments.tokens)


def tests_of(arguments: argparse.Namespace) -> dict[str, Calibration]:
    """Held-out tokens by kind."""
    kinds = (("task prompts", arguments.test, None), ("held-out text", None, arguments.test_text))
    return {
        kind: tokens_of(arguments.model_dir, examples, text, arguments.test_tokens)
        for kind, examples, text in kinds
        if examples or text
    }


def tokens_of(model_dir: Path, examples: Path | None, text: Path | None, n_tokens: int) -> Calibration:
    """Of chat JSONL and a text, in pieces of CHUNK_SIZE."""
    return folder_calibration(model_dir, examples=examples, text=text, max_tokens=n_tokens, chunk_size=CHUNK_SIZE)


def compare(
    reference: Path, models: Mapping[str, Path], tests: Mapping[str, Calibration], baseline: str
) -> dict[str, dict[str, float]]:
    """Of each model, for each kind of tokens, mean KL to `reference` in nats, equal most likely tokens, and the KL
    over that of the model called `baseline`, where there is one."""
    expected = {kind: scores(reference, test.sequences) for kind, test in tests.items()}
    rows: dict[str, dict[str, float]] = {}
    for label, path in sorted(models.items(), key=lambda item: item[0] != baseline):
        rows[label] = row = {}
        for kind, test in tests.items():
            pairs = list(zip(expected[kind], scores(path, test.sequences), strict=True))
            row[f"{kind}: KL"] = float(np.concatenate([kl_divergence(*pair) for pair in pairs]).mean())
            row[f"{kind}: top 1"] = float(np.concatenate([top1_agrees(*pair) for pair in pairs]).mean())
            if baseline in models:
                row[f"{kind}: KL ratio"] = row[f"{kind}: KL"] / rows[baseline][f"{kind}: KL"]
    return rows


def scores(path: Path, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Logits (T, V) behind each token of each sequence."""
    with load(path, n_ctx=CHUNK_SIZE + N_GEN, n_threads=1) as model:
        return [model.score(sequence).copy() for sequence in sequences]


def decode_speeds(models: Mapping[str, Path], test: Calibration, repetitions: int) -> dict[str, list[float]]:
    """Tokens a second of each model on one thread, in turns."""
    prompt = test.sequences[0][:16]
    opened = {label: load(path, n_ctx=CHUNK_SIZE + N_GEN, n_threads=1) for label, path in models.items()}
    speeds: dict[str, list[float]] = {label: [] for label in models}
    for _ in range(repetitions):
        for label, model in opened.items():
            stream = model.stream(prompt, max_new_tokens=N_GEN + 1, ignore_eos=True)
            next(stream)
            start = time.perf_counter()
            n_tokens = sum(1 for _ in stream)
            speeds[label].append(round(n_tokens / (time.perf_counter() - start), 1))
    for model in opened.values():
        model.close()
    return speeds


def keep(arguments: argparse.Namespace, result: Mapping[str, Any]) -> None:
    """Put `result` under the model's name into the result file."""
    content = json.loads(arguments.out.read_text("utf-8")) if arguments.out.exists() else {}
    content |= {"host": describe_host(), "versions": backend_versions()}
    content.setdefault("models", {})[arguments.name] = {**result, "load_average": load_average()}
    arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
