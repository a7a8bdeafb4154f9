"""How far 4-bit ONNX folders are from the float32 graph, ours and onnxruntime-genai's default.

    python benchmarks/onnx_quality.py NAME MODEL_DIR --genai FOLDER [--train JSONL] [--train-text TXT]
        [--test JSONL] [--test-text TXT]

FOLDER is where onnxruntime-genai is installed (`pip install --target FOLDER --no-deps onnxruntime-genai`; the
environment variable EDGEFT_GENAI). Its builder writes int4 by its default, rounding to the nearest in blocks of 32.
Ours are made from the same calibration tokens (`--train…`): every layout and rounding method, and `auto`, the
mix of grids that takes no more bytes than blocks of 32 everywhere. All read the same held-out tokens (`--test…`)
in onnxruntime: mean KL(float32 ‖ folder) in nats a token, the share of equal most likely tokens, and decode speed
on one thread, folders taking turns. The result joins those in the output file.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.bench.host import backend_versions, describe_host, load_average
from edgeft.console import silent_log, terminal_log
from edgeft.export.folder import read_folder
from edgeft.export.onnx.export import export_onnx, lay_out_decoder
from edgeft.export.onnx.groups import groups_of
from edgeft.export.onnx.matrices import onnx_rules
from edgeft.export.onnx.settings import EIGHT_BITS_SINCE, OnnxSettings
from edgeft.parity.numbers import kl_divergence, top1_agrees
from edgeft.quant.calibration import Calibration
from edgeft.quant.collect import folder_calibration
from edgeft.quant.grids.onnx import MatMulNBits, matrix_bytes
from edgeft.quant.onnx_auto import calibrated_rounder, plan_grids
from edgeft.quant.onnx_rounding import UNCALIBRATED
from edgeft.runtime.onnx import OnnxModel
from edgeft.training.models import load_model

ROOT = Path(__file__).resolve().parent.parent
GENAI, REFERENCE = "genai, int4 default", "fp32"
CHUNK_SIZE, N_GEN = 256, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--genai", type=Path, default=os.environ.get("EDGEFT_GENAI"))
    for option in ("--train", "--train-text", "--test", "--test-text"):
        parser.add_argument(option, type=Path)
    parser.add_argument("--tokens", type=int, default=8192, help="calibration tokens")
    parser.add_argument("--test-tokens", type=int, default=4096, help="held-out tokens of each kind")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/onnx_quality.json")
    arguments = parser.parse_args()
    calibration = tokens_of(arguments.model_dir, arguments.train, arguments.train_text, arguments.tokens)
    kinds = (("task prompts", arguments.test, None), ("held-out text", None, arguments.test_text))
    tests = {
        kind: tokens_of(arguments.model_dir, examples, text, arguments.test_tokens)
        for kind, examples, text in kinds
        if examples or text
    }
    with tempfile.TemporaryDirectory() as temporary:
        folders = make_folders(arguments.model_dir, calibration, Path(temporary))
        if arguments.genai:
            folders |= {GENAI: genai_folder(arguments.model_dir, Path(temporary), arguments.genai)}
        result = {
            "calibration_tokens": calibration.n_tokens,
            "folders": compare(folders, tests),
            "decode_tokens_per_s": decode_speeds(folders, next(iter(tests.values())), arguments.repetitions),
            "load_average": load_average(),
        }
    for label, row in result["folders"].items():
        print(f"{label:<28}" + "".join(f"{key} {value:<12.6g}" for key, value in row.items()))
    content = json.loads(arguments.out.read_text("utf-8")) if arguments.out.exists() else {}
    content |= {"host": describe_host(), "versions": backend_versions()}
    content.setdefault("models", {})[arguments.name] = result
    arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def tokens_of(model_dir: Path, examples: Path | None, text: Path | None, n_tokens: int) -> Calibration:
    return folder_calibration(model_dir, examples=examples, text=text, max_tokens=n_tokens, chunk_size=CHUNK_SIZE)


def make_folders(model_dir: Path, calibration: Calibration, out: Path) -> dict[str, Path]:
    """By what they are."""
    layout, _ = lay_out_decoder(read_folder(model_dir))
    rules = onnx_rules(layout.rules)
    sources = {name: rule.sources for name, rule in rules.items()}
    model, sequences = load_model(model_dir), calibration.sequences
    rounders: dict[str, Any] = dict(UNCALIBRATED)
    for method in ("gptq", "feedback"):
        rounders[method] = calibrated_rounder(model, sequences, sources, method, log=silent_log())  # type: ignore[arg-type]
    groups = groups_of(rules, EIGHT_BITS_SINCE)
    target = sum(
        matrix_bytes(shape, MatMulNBits(4, 32)) for group in groups.values() for shape in group.tensors.values()
    )
    grids, rounder = plan_grids(model, sequences, sources, groups, target_bytes=target, log=terminal_log())
    entries = {REFERENCE: OnnxSettings("fp32"), "int8/32 rtn": OnnxSettings("int8")}
    for block_size, symmetric in ((32, True), (32, False), (64, True), (128, True)):
        for method, rounding in rounders.items():
            settings = OnnxSettings("int4", block_size, symmetric, rounder=rounding)
            entries[f"{settings.name} {method}".replace("/", "-")] = settings
    entries["auto"] = OnnxSettings("int4", grids=grids, rounder=rounder)
    named = {label.replace("/", "-").replace(" ", "-"): settings for label, settings in entries.items()}
    export_onnx(model_dir, out, entries=named, provenance={}, log=silent_log(), n_threads=1)
    return {name: out / name for name in named}


def genai_folder(model_dir: Path, out: Path, installed: Path) -> Path:
    """onnxruntime-genai's own int4 folder; its builder takes the folder with the model as transformers reads it."""
    made = out / "genai"
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(model_dir), "-o", str(made)]
    environment = os.environ | {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    command += ["-p", "int4", "-e", "cpu", "-c", str(out / "cache")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the builder failed:\n{done.stderr[-3000:]}")
    return made


def compare(folders: Mapping[str, Path], tests: Mapping[str, Calibration]) -> dict[str, dict[str, float]]:
    """By folder: bytes, and for each kind of tokens mean KL, its ratio to genai's, and top-1 agreement."""
    expected = {kind: scores(folders[REFERENCE], test.sequences) for kind, test in tests.items()}
    rows: dict[str, dict[str, float]] = {}
    for label, path in sorted(folders.items(), key=lambda item: item[0] != GENAI):
        row = {"bytes": float(sum(file.stat().st_size for file in path.glob("model.onnx*")))}
        for kind, test in tests.items():
            pairs = list(zip(expected[kind], scores(path, test.sequences), strict=True))
            row[f"{kind}: KL"] = float(np.concatenate([kl_divergence(*pair) for pair in pairs]).mean())
            row[f"{kind}: top 1"] = float(np.concatenate([top1_agrees(*pair) for pair in pairs]).mean())
            if GENAI in folders:
                row[f"{kind}: KL ratio"] = row[f"{kind}: KL"] / rows.get(GENAI, row)[f"{kind}: KL"]
        rows[label] = row
    return rows


def scores(path: Path, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
    with OnnxModel(path, n_ctx=CHUNK_SIZE + N_GEN, n_threads=1) as model:
        return [model.score(sequence).copy() for sequence in sequences]


def decode_speeds(folders: Mapping[str, Path], test: Calibration, repetitions: int) -> dict[str, Any]:
    """Median tokens a second, and every repetition."""
    prompt = test.sequences[0][:16]
    models = {label: OnnxModel(path, n_ctx=CHUNK_SIZE + N_GEN, n_threads=1) for label, path in folders.items()}
    speeds: dict[str, list[float]] = {label: [] for label in folders}
    for _ in range(repetitions):
        for label, model in models.items():
            stream = model.stream(prompt, max_new_tokens=N_GEN + 1, ignore_eos=True)
            next(stream)
            start = time.perf_counter()
            n_tokens = sum(1 for _ in stream)
            speeds[label].append(round(n_tokens / (time.perf_counter() - start), 1))
    for model in models.values():
        model.close()
    return {label: {"median": statistics.median(all_), "all": all_} for label, all_ in speeds.items()}


if __name__ == "__main__":
    main()
