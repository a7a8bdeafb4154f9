"""Model folder to int4 ONNX folder: ours, onnxruntime-genai's builder, and transformers' exporter with onnxruntime's
MatMulNBits quantizer behind it, as whole processes.

    python benchmarks/onnx_export.py --genai FOLDER [--models smollm2-135m ...] [--rounds 3] [--out FILE]

FOLDER is where onnxruntime-genai is installed (`pip install --target FOLDER --no-deps onnxruntime-genai`; the
environment variable EDGEFT_GENAI). Models of random bfloat16 weights in the shapes of SmolLM2-135M and Qwen2.5-0.5B.
All round to the nearest, symmetrically, in blocks of 32. Wall and processor seconds, peak resident memory and bytes
of each; runs take turns. The arithmetic minimum of a tied model is 5 bits a weight: 4 and its share of a float32.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers import SHAPES

from edgeft.bench.host import backend_versions, describe_host
from edgeft.export.folder import open_checkpoint
from edgeft.machine.silence import no_telemetry

ROOT = Path(__file__).resolve().parent.parent
OURS = "edgeft"
BITS = 4 + 32 / 32
MAKE = """
import sys
sys.path.insert(0, {root!r})
import torch
from pathlib import Path
from transformers import AutoModelForCausalLM, LlamaConfig
from tests.tiny import tiny_tokenizer
torch.manual_seed(0)
tokens = {{"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": True}}
config = LlamaConfig(**{shape!r}, **tokens, max_position_embeddings=2048)
AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained({folder!r})
tiny_tokenizer().save_pretrained({folder!r})
"""
TRACED = """
import sys
from pathlib import Path
import onnx, torch
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
from transformers import AutoModelForCausalLM
from transformers.exporters import OnnxConfig, OnnxExporter
from transformers.exporters.utils import decompose_for_generation
folder, out = map(Path, sys.argv[1:])
out.mkdir()
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
ids = torch.arange(3, 11)[None]
inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
decoder, sample = decompose_for_generation(model, inputs, multi_token_decode=True)["decode"]
exporter = OnnxExporter()
made = exporter.export(decoder, sample, OnnxConfig(dynamic=True, ort_fusions="cpu"))
program = made[0] if isinstance(made, tuple) else made
exporter.save_program(getattr(program, "program", program), out / "fp32.onnx")
del model, decoder, made, program
settings = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, accuracy_level=4)
quantizer = MatMulNBitsQuantizer(onnx.load(out / "fp32.onnx"), algo_config=settings)
quantizer.process()
quantizer.model.save_model_to_file(str(out / "model.onnx"), use_external_data_format=True)
for name in ("fp32.onnx", "fp32.onnx.data"):
    (out / name).unlink()
"""


def main() -> None:
    no_telemetry()  # children inherit it
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genai", default=os.environ.get("EDGEFT_GENAI"), help="folder with onnxruntime_genai")
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=["smollm2-135m", "qwen2.5-0.5b"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-traced", action="store_true", help="leave transformers' exporter out")
    parser.add_argument("--scratch", type=Path, help="where models and folders are made [a temporary folder]")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/onnx_export.json")
    arguments = parser.parse_args()
    if not arguments.genai:
        parser.error("give --genai, the folder with onnxruntime_genai")
    runs: list[dict[str, Any]] = []
    minimum = {}
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        for model in arguments.models:
            folder = Path(scratch) / model
            subprocess.run([sys.executable, "-c", MAKE.format(root=str(ROOT), shape=SHAPES[model], folder=str(folder))])
            minimum[model] = least_bytes(folder)
            commands = contenders(folder, arguments.genai)
            if arguments.no_traced:
                del commands["transformers + quantizer"]
            for _ in range(arguments.rounds):
                for name, (command, environment) in commands.items():
                    runs.append({"model": model, "contender": name, **timed(command, environment, Path(scratch))})
                    print(json.dumps(runs[-1]), flush=True)
    result = {"host": describe_host(), "versions": backend_versions(), **compared(runs, minimum), "runs": runs}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(compared(runs, minimum), indent=1))


def contenders(folder: Path, genai: str) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Command, to which the folder to make is added, and environment of each."""
    ours = [sys.executable, "-m", "edgeft", "export", "onnx", str(folder), "--method", "rtn", "-o"]
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(folder), "-p", "int4", "-e", "cpu"]
    return {
        OURS: (ours, {}),
        "genai": ([*builder, "-c", str(folder / "cache"), "-o"], {"PYTHONPATH": genai, "HF_HUB_OFFLINE": "1"}),
        "transformers + quantizer": ([sys.executable, "-c", TRACED, str(folder)], {"HF_HUB_OFFLINE": "1"}),
    }


def least_bytes(folder: Path) -> int:
    """Of the matrices in int4 in blocks of 32, the tied embedding once, and the vectors in float32."""
    shapes = [tensor.shape for tensor in open_checkpoint(folder).tensors.values()]
    bits = sum(math.prod(shape) * (BITS if len(shape) > 1 else 32) for shape in shapes)
    return int(bits // 8)


def timed(command: list[str], environment: dict[str, str], scratch: Path) -> dict[str, float]:
    """Seconds, memory and bytes of one process that makes the folder."""
    with tempfile.TemporaryDirectory(dir=scratch) as made, tempfile.TemporaryFile("w+") as log:
        load, start = os.getloadavg()[0], time.perf_counter()
        arguments = [*command, str(Path(made) / "out")]
        process = subprocess.Popen(arguments, stdout=log, stderr=log, cwd=ROOT, env=os.environ | environment)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        if status:
            log.seek(0)
            raise SystemExit(f"{' '.join(command[:4])} failed:\n{log.read()[-3000:]}")
        n_bytes = sum(file.stat().st_size for file in Path(made).rglob("*.onnx*"))
    return {
        "wall_s": wall,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_rss_mb": usage.ru_maxrss / 1000,
        "bytes": n_bytes,
        "load_before": load,
    }


def compared(runs: list[dict[str, Any]], minimum: dict[str, int]) -> dict[str, Any]:
    """Medians, and each peer's seconds and memory over ours; bytes over the arithmetic minimum."""
    medians: dict[str, Any] = {}
    for model, contender in dict.fromkeys((run["model"], run["contender"]) for run in runs):
        same = [run for run in runs if (run["model"], run["contender"]) == (model, contender)]
        row = {key: statistics.median(run[key] for run in same) for key in ("wall_s", "cpu_s", "peak_rss_mb", "bytes")}
        row["bytes_over_minimum"] = row["bytes"] / minimum[model]
        ours = medians.setdefault(model, {}).setdefault(OURS, row)
        row |= {f"{key}_over_ours": row[key] / ours[key] for key in ("wall_s", "cpu_s", "peak_rss_mb")}
        medians[model][contender] = row
    return {"medians": medians, "minimum_bytes": minimum}


if __name__ == "__main__":
    main()
