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

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from quality import calibration_of, compare, decode_speeds, keep, parser_of, tests_of

from edgeft.console import silent_log, terminal_log
from edgeft.export.folder import read_folder
from edgeft.export.onnx.export import export_onnx, lay_out_decoder
from edgeft.export.onnx.groups import groups_of
from edgeft.export.onnx.matrices import onnx_rules
from edgeft.export.onnx.settings import EIGHT_BITS_SINCE, OnnxSettings
from edgeft.machine.silence import no_telemetry
from edgeft.quant.calibration import Calibration
from edgeft.quant.grids.onnx import MatMulNBits, matrix_bytes
from edgeft.quant.onnx_auto import calibrated_rounder, plan_grids
from edgeft.quant.onnx_rounding import UNCALIBRATED
from edgeft.training.models import load_model

RESULTS = Path(__file__).resolve().parent / "results" / "onnx_quality.json"
GENAI, REFERENCE = "genai, int4 default", "fp32"


def main() -> None:
    no_telemetry()  # children inherit it
    parser = parser_of(__doc__, RESULTS)
    parser.add_argument("--genai", type=Path, default=os.environ.get("EDGEFT_GENAI"))
    arguments = parser.parse_args()
    calibration, tests = calibration_of(arguments), tests_of(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folders = make_folders(arguments.model_dir, calibration, Path(temporary))
        if arguments.genai:
            folders |= {GENAI: genai_folder(arguments.model_dir, Path(temporary), arguments.genai)}
        rows = compare(folders[REFERENCE], folders, tests, GENAI)
        speeds = decode_speeds(folders, next(iter(tests.values())), arguments.repetitions)
        result = {
            "calibration_tokens": calibration.n_tokens,
            "folders": {label: {"bytes": n_bytes(folders[label]), **row} for label, row in rows.items()},
            "decode_tokens_per_s": {
                label: {"median": statistics.median(all_), "all": all_} for label, all_ in speeds.items()
            },
        }
    for label, row in result["folders"].items():
        print(f"{label:<28}" + "".join(f"{key} {value:<12.6g}" for key, value in row.items()))
    keep(arguments, result)


def n_bytes(folder: Path) -> float:
    return float(sum(file.stat().st_size for file in folder.glob("model.onnx*")))


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


if __name__ == "__main__":
    main()
