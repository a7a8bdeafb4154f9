"""How far 4-bit GGUF files are from the float32 model: llama.cpp's Q4_K_M with an importance matrix, and `auto`.

    python benchmarks/gguf_quality.py NAME MODEL_DIR [--train JSONL] [--train-text TXT] [--test JSONL] [--test-text TXT]

Of the trained model in MODEL_DIR four files are made from the same calibration tokens (`--train…`), none larger
than the first: Q4_K_M with an importance matrix (byte for byte llama-quantize's); the same types rounded with
error feedback; the types of `auto` as ggml rounds them; and `auto`, which is both. Every file, and the float32
one, then reads the same held-out tokens (`--test…`) in llama.cpp: mean KL(float32 ‖ file) in nats a token, the
share of equal most likely tokens, and decode speed on one thread, files taking turns. The result joins those in
the output file.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.bench.host import backend_versions, describe_host, load_average
from edgeft.console import silent_log, terminal_log
from edgeft.export.folder import open_checkpoint, read_folder
from edgeft.export.gguf.architectures.layout import lay_out
from edgeft.export.gguf.tensor_types import tensor_types
from edgeft.export.gguf.write import write_gguf
from edgeft.parity.numbers import kl_divergence, top1_agrees
from edgeft.quant.auto import GgufTensor, auto_mix
from edgeft.quant.calibration import Calibration
from edgeft.quant.collect import collect_imatrix, folder_calibration
from edgeft.runtime import load
from edgeft.training.models import load_model

ROOT = Path(__file__).resolve().parent.parent
BASELINE = "Q4_K_M + imatrix"
CHUNK_SIZE, N_GEN = 256, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("model_dir", type=Path)
    for option in ("--train", "--train-text", "--test", "--test-text"):
        parser.add_argument(option, type=Path)
    parser.add_argument("--tokens", type=int, default=8192, help="calibration tokens")
    parser.add_argument("--test-tokens", type=int, default=4096, help="held-out tokens of each kind")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/gguf_quality.json")
    arguments = parser.parse_args()
    calibration = tokens_of(arguments.model_dir, arguments.train, arguments.train_text, arguments.tokens)
    tests = {
        kind: tokens_of(arguments.model_dir, examples, text, arguments.test_tokens)
        for kind, examples, text in (
            ("task prompts", arguments.test, None),
            ("held-out text", None, arguments.test_text),
        )
        if examples or text
    }
    with tempfile.TemporaryDirectory() as temporary:
        reference = Path(temporary) / "F32.gguf"
        write(arguments.model_dir, reference, ftype="F32")
        files, plan = make_files(arguments.model_dir, calibration, Path(temporary))
        result = {
            "calibration_tokens": calibration.n_tokens,
            "files": compare(reference, files, tests),
            "decode": decode_speeds(files, next(iter(tests.values())), arguments.repetitions),
            "auto_types": {name: kind.name for name, kind in plan.types.items()},
            "load_average": load_average(),
        }
    print(json.dumps(result["files"], indent=1))
    content = json.loads(arguments.out.read_text("utf-8")) if arguments.out.exists() else {}
    content |= {"host": describe_host(), "versions": backend_versions()}
    content.setdefault("models", {})[arguments.name] = result
    arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def tokens_of(model_dir: Path, examples: Path | None, text: Path | None, n_tokens: int) -> Calibration:
    return folder_calibration(model_dir, examples=examples, text=text, max_tokens=n_tokens, chunk_size=CHUNK_SIZE)


def make_files(model_dir: Path, calibration: Calibration, out: Path) -> tuple[dict[str, Path], Any]:
    """The files by what they are, and the plan of the mix."""
    layout = lay_out(read_folder(model_dir), open_checkpoint(model_dir))
    shapes = [(rule.name, rule.shape) for rule in layout.rules]
    default = tensor_types("Q4_K_M", shapes, layout.hyperparameters, importance=True)
    model = load_model(model_dir)
    sources = {rule.name: rule.sources for rule in layout.rules}
    imatrix = collect_imatrix(model, calibration, sources, chunk_size=CHUNK_SIZE, log=silent_log())
    tensors = {rule.name: GgufTensor(rule.sources, rule.shape, default[rule.name]) for rule in layout.rules}
    mix = auto_mix(model, calibration.sequences, tensors, log=terminal_log())
    settings: dict[str, dict[str, Any]] = {
        BASELINE: {},
        "Q4_K_M, error feedback": {"rounder": mix.rounder},
        "types of auto + imatrix": {"types": mix.plan.types},
        "auto": {"types": mix.plan.types, "rounder": mix.rounder},
    }
    files = {}
    for number, (label, more) in enumerate(settings.items()):
        files[label] = out / f"{number}.gguf"
        write(model_dir, files[label], ftype="Q4_K_M", imatrix=imatrix, **more)
    return files, mix.plan


def write(model_dir: Path, out: Path, **settings: Any) -> None:
    write_gguf(model_dir, out, name="model", provenance={}, log=silent_log(), n_threads=1, **settings)


def compare(
    reference: Path, files: Mapping[str, Path], tests: Mapping[str, Calibration]
) -> dict[str, dict[str, float]]:
    """By file: bytes, and for each kind of tokens mean KL, its ratio to the baseline's, and top-1 agreement."""
    expected = {kind: scores(reference, test.sequences) for kind, test in tests.items()}
    rows: dict[str, dict[str, float]] = {}
    for label, path in files.items():
        row = {"bytes": float(path.stat().st_size)}
        for kind, test in tests.items():
            pairs = list(zip(expected[kind], scores(path, test.sequences), strict=True))
            row[f"{kind}: KL"] = float(np.concatenate([kl_divergence(*pair) for pair in pairs]).mean())
            row[f"{kind}: top 1"] = float(np.concatenate([top1_agrees(*pair) for pair in pairs]).mean())
            row[f"{kind}: KL ratio"] = row[f"{kind}: KL"] / rows.get(BASELINE, row)[f"{kind}: KL"]
        rows[label] = row
    return rows


def scores(path: Path, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
    with load(path, n_ctx=CHUNK_SIZE + N_GEN, n_threads=1) as model:
        return [model.score(sequence) for sequence in sequences]


def decode_speeds(files: Mapping[str, Path], test: Calibration, repetitions: int) -> dict[str, Any]:
    """Tokens a second, every repetition of each file, and the median of the ratios to the baseline beside it."""
    prompt = test.sequences[0][:16]
    models = {label: load(path, n_ctx=CHUNK_SIZE + N_GEN, n_threads=1) for label, path in files.items()}
    speeds: dict[str, list[float]] = {label: [] for label in files}
    for _ in range(repetitions):
        for label, model in models.items():
            stream = model.stream(prompt, max_new_tokens=N_GEN + 1, ignore_eos=True)
            next(stream)
            start = time.perf_counter()
            n_tokens = sum(1 for _ in stream)
            speeds[label].append(round(n_tokens / (time.perf_counter() - start), 1))
    for model in models.values():
        model.close()
    pairs = zip(speeds["auto"], speeds[BASELINE], strict=True)
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    return {"tokens_per_s": speeds, "auto_over_baseline": round(ratio, 3)}


if __name__ == "__main__":
    main()
