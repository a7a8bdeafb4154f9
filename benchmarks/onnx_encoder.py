"""A classifier as an ONNX encoder: accuracy, size and texts per second, fp32 and int8, beside its peers.

    python benchmarks/onnx_encoder.py MODEL_DIR DATA_DIR [--texts N] [--rounds N] [--threads N]

MODEL_DIR is a trained classifier (the merge stage's folder), DATA_DIR the prepared data it was trained on (the data
stage's folder: train.jsonl calibrates, test.jsonl is measured). Forms: the model in torch; our graphs in fp32, int8
(with calibration texts and without), int8_static by each method and, where the processor multiplies halves, fp16;
peers are transformers' own exporter with onnxruntime's fusions, and onnxruntime's quantize_dynamic of that, per
tensor and per channel. Accuracy, agreement with torch, KL(torch ‖ form) and the largest difference of a logit are over
--texts of the test set in batches of 32; speed is over 32 texts one by one and as one batch, without tokenizing, forms
taking turns, medians over the rounds. Targets: int8 within 0.3 points of fp32, at least twice its texts per second
at both batch sizes, at most 26 MB.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import torch
from peers import result_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.exporters import OnnxConfig, OnnxExporter

from edgeft.artifact import write_atomic
from edgeft.bench.encoder import text_of
from edgeft.bench.examples import read_examples, take
from edgeft.bench.host import backend_versions, describe_host
from edgeft.console import silent_log
from edgeft.export.onnx.encoders import EncoderSettings, export_encoder
from edgeft.machine.instruction_sets import instruction_sets
from edgeft.machine.process import load_average
from edgeft.parity.numbers import kl_divergence
from edgeft.runtime.ort import imported, onnxruntime

ROOT = Path(__file__).resolve().parent.parent
BATCH = 32
FORMS: tuple[tuple[str, EncoderSettings, bool], ...] = (
    ("fp32", EncoderSettings("fp32"), False),
    ("int8", EncoderSettings("int8"), True),
    ("int8, no texts", EncoderSettings("int8"), False),
    ("int8, vnni only", EncoderSettings("int8", reduce_range=False), True),
    ("int8_static minmax", EncoderSettings("int8_static", "minmax"), True),
    ("int8_static percentile", EncoderSettings("int8_static", "percentile"), True),
    ("int8_static entropy", EncoderSettings("int8_static", "entropy"), True),
)
TRACED, TENSOR, CHANNEL = "traced fp32", "traced, quantize_dynamic", "traced, quantize_dynamic per channel"

Feed = dict[str, np.ndarray]
Form = Callable[[Feed], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--texts", type=int, default=None, help="test texts that accuracy is over (all)")
    parser.add_argument("--calibration", type=int, default=256, help="training texts")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=result_file("onnx_encoder.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train = [
        text_of(each) for each in take(read_examples(arguments.data_dir / "train.jsonl"), arguments.calibration, 0)
    ]
    test = take(read_examples(arguments.data_dir / "test.jsonl"), arguments.texts, 0)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model_dir)
    before = load_average()
    with tempfile.TemporaryDirectory(prefix="onnx-encoder-") as temporary:
        paths = export_all(arguments.model_dir, Path(temporary), train, tokenizer)
        forms: dict[str, Form] = {"torch": torch_form(arguments.model_dir)}
        forms |= {name: onnx_form(path, arguments.threads) for name, path in paths.items()}
        rows = accuracies(forms, [text_of(each) for each in test], [each.answer for each in test], tokenizer)
        for name, path in paths.items():
            rows[name]["bytes"] = path.stat().st_size
        texts = [text_of(each) for each in test[:: max(1, len(test) // BATCH)][:BATCH]]
        for name, rates in speeds(forms, texts, tokenizer, arguments.rounds).items():
            rows[name] |= rates
    for row in rows.values():
        for rate in ("texts_per_s_batch_1", "texts_per_s_batch_32"):
            row[f"{rate}_of_fp32"] = round(row[rate] / rows["fp32"][rate], 3)
    result = {
        "host": {**describe_host(), "instruction_sets": list(instruction_sets())},
        "load_average": {"before": before, "after": load_average()},
        "versions": backend_versions() | {"torch": torch.__version__},
        "n_texts": len(test),
        "calibration_texts": len(train),
        "rounds": arguments.rounds,
        "n_threads": arguments.threads,
        "forms": rows,
    }
    write_atomic(arguments.out, json.dumps(result, indent=1) + "\n")
    show(rows)


def export_all(model_dir: Path, folder: Path, texts: Sequence[str], tokenizer: Any) -> dict[str, Path]:
    """The ONNX file of every form, by its name."""
    paths = {}
    for place, (name, settings, calibrated) in enumerate(FORMS):
        out = folder / str(place)
        given = texts if calibrated else ()
        export_encoder(model_dir, out, settings=settings, texts=given, log=silent_log())
        paths[name] = out / "model.onnx"
    paths[TRACED] = traced(model_dir, folder / "traced.onnx", tokenizer)
    model = onnx.load(paths[TRACED])
    quantization = imported("onnxruntime.quantization")
    del model.graph.value_info[:]  # a shape in there is wrong, and the quantizer stops at it
    floats = {"DefaultTensorType": onnx.TensorProto.FLOAT}  # what fused operators give out, of which it knows nothing
    for name, per_channel in ((TENSOR, False), (CHANNEL, True)):
        paths[name] = folder / f"traced-{per_channel}.onnx"
        quantization.quantize_dynamic(
            model, paths[name], per_channel=per_channel, weight_type=quantization.QuantType.QInt8, extra_options=floats
        )
    return paths


def traced(model_dir: Path, path: Path, tokenizer: Any) -> Path:
    """transformers' own exporter, in one file."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(model_dir, dtype=torch.float32).eval()
    sample = tokenizer(["one text", "and another that is longer"], padding=True, return_tensors="pt")
    config = OnnxConfig(dynamic=True, ort_fusions="cpu")
    onnx_ir.save(OnnxExporter().export(model, dict(sample), config).program, path)
    return path


def torch_form(model_dir: Path) -> Form:
    model: Any = AutoModelForSequenceClassification.from_pretrained(model_dir, dtype=torch.float32).eval()

    def run(feed: Feed) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(model(**{name: torch.from_numpy(array) for name, array in feed.items()}).logits)

    return run


def onnx_form(path: Path, n_threads: int) -> Form:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda feed: np.asarray(session.run(None, {name: feed[name] for name in names})[0])


def feed_of(texts: Sequence[str], tokenizer: Any) -> Feed:
    return dict(tokenizer(list(texts), padding=True, truncation=True, return_tensors="np"))


def accuracies(
    forms: dict[str, Form], texts: list[str], answers: list[str], tokenizer: Any, *, reference: str = "torch"
) -> dict[str, dict[str, Any]]:
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    feeds = [feed_of([texts[i] for i in order[at : at + BATCH]], tokenizer) for at in range(0, len(order), BATCH)]
    logits = {name: np.concatenate([run(feed) for feed in feeds]).astype(np.float64) for name, run in forms.items()}
    config = json.loads((Path(tokenizer.name_or_path) / "config.json").read_text())
    labels = [config["id2label"][key] for key in sorted(config["id2label"], key=int)]
    gold = np.array([labels.index(answers[place].strip()) for place in order])
    exact = logits[reference]
    return {
        name: {
            "accuracy": round(float((values.argmax(axis=1) == gold).mean()), 5),
            "agreement": round(float((values.argmax(axis=1) == exact.argmax(axis=1)).mean()), 5),
            "kl_mean": float(kl_divergence(exact, values).mean()),
            "max_logit_difference": float(np.abs(values - exact).max()),
        }
        for name, values in logits.items()
    }


def speeds(forms: dict[str, Form], texts: list[str], tokenizer: Any, rounds: int) -> dict[str, dict[str, float]]:
    singles, together = [feed_of([text], tokenizer) for text in texts], feed_of(texts, tokenizer)
    taken: dict[str, dict[int, list[float]]] = {name: {1: [], BATCH: []} for name in forms}
    for number in range(rounds + 1):
        for name, run in forms.items():
            for size, feeds in ((1, singles), (BATCH, [together])):
                started = time.perf_counter()
                for feed in feeds:
                    run(feed)
                if number:  # the first round warms up
                    taken[name][size].append(len(texts) / (time.perf_counter() - started))
    return {
        name: {f"texts_per_s_batch_{size}": round(statistics.median(rates), 2) for size, rates in by_size.items()}
        for name, by_size in taken.items()
    }


def show(rows: dict[str, dict[str, Any]]) -> None:
    print(f"{'form':38}{'MB':>7}{'accuracy':>10}{'agree':>8}{'KL':>10}{'batch 1':>16}{'batch 32':>16}")
    for name, row in rows.items():
        size = f"{row['bytes'] / 1e6:.1f}" if "bytes" in row else "-"
        rates = "".join(
            f"{row[f'texts_per_s_batch_{n}']:>9.1f} {row[f'texts_per_s_batch_{n}_of_fp32']:>5.2f}x" for n in (1, BATCH)
        )
        print(f"{name:38}{size:>7}{row['accuracy']:>10.4f}{row['agreement']:>8.4f}{row['kl_mean']:>10.2e}{rates}")


if __name__ == "__main__":
    main()
