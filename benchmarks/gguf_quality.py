"""How far 4-bit GGUF files are from the float32 model: llama.cpp's Q4_K_M with an importance matrix, and `auto`.

    python benchmarks/gguf_quality.py NAME MODEL_DIR [--train JSONL] [--train-text TXT] [--test JSONL] [--test-text TXT]

Of the trained model in MODEL_DIR four files are made from the same calibration tokens (`--train…`), none larger
than the first: Q4_K_M with an importance matrix (byte for byte llama-quantize's); the same types rounded with
error feedback; the types of `auto` as ggml rounds them; and `auto`, which is both. Every file, and the float32
one, then reads the same held-out tokens (`--test…`) in llama.cpp: mean KL(float32 ‖ file) in nats a token, the
share of equal most likely tokens, and decode speed on one thread, files taking turns. The result joins those in
the output file.
"""

import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quality import CHUNK_SIZE, calibration_of, compare, decode_speeds, keep, parser_of, tests_of

from edgeft.console import silent_log, terminal_log
from edgeft.export.folder import open_checkpoint, read_folder
from edgeft.export.gguf.architectures.layout import lay_out
from edgeft.export.gguf.tensor_types import tensor_types
from edgeft.export.gguf.write import write_gguf
from edgeft.quant.auto import GgufTensor, auto_mix
from edgeft.quant.calibration import Calibration
from edgeft.quant.collect import collect_imatrix
from edgeft.training.models import load_model

RESULTS = Path(__file__).resolve().parent / "results" / "gguf_quality.json"
BASELINE = "Q4_K_M + imatrix"


def main() -> None:
    arguments = parser_of(__doc__, RESULTS).parse_args()
    calibration, tests = calibration_of(arguments), tests_of(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        reference = Path(temporary) / "F32.gguf"
        write(arguments.model_dir, reference, ftype="F32")
        files, plan = make_files(arguments.model_dir, calibration, Path(temporary))
        rows = compare(reference, files, tests, BASELINE)
        result = {
            "calibration_tokens": calibration.n_tokens,
            "files": {label: {"bytes": float(files[label].stat().st_size), **row} for label, row in rows.items()},
            "decode": beside_baseline(decode_speeds(files, next(iter(tests.values())), arguments.repetitions)),
            "auto_types": {name: kind.name for name, kind in plan.types.items()},
        }
    print(json.dumps(result["files"], indent=1))
    keep(arguments, result)


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


def beside_baseline(speeds: Mapping[str, list[float]]) -> dict[str, Any]:
    """Every repetition of each file, and the median of the mix's ratios to the baseline beside it."""
    pairs = zip(speeds["auto"], speeds[BASELINE], strict=True)
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    return {"tokens_per_s": speeds, "auto_over_baseline": round(ratio, 3)}


if __name__ == "__main__":
    main()
