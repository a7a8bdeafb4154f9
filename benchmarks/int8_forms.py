"""Ways to store an encoder's int8 weights, on the processor at hand: exactness, accuracy and speed of each.

    python benchmarks/int8_forms.py MODEL_DIR DATA_DIR [--texts N] [--rounds N] [--threads N] [--out FILE]

MODEL_DIR and DATA_DIR are those of onnx_encoder.py. Forms, calibrated on the same texts, of DynamicQuantizeMatMul but
for one:

- `pairs`, the default: 8 bits, pairs of rows held to what 16 bits can add; `pairs, static` by QDQ, `percentile`;
- `7 bits`, onnxruntime's reduce_range; both give the same integers on every processor, by the kernels of int8 weights;
- `8 bits`, `reduce_range: false`: wrong on x86 without VNNI, exact elsewhere;
- `8 bits, exact`: the same file as edgeft's runtime opens it where it would be wrong (`session.x64quantprecision`;
  elsewhere the option does nothing);
- `uint8`: the same weights stored as uint8 with the zero point 128, exact everywhere, by the kernels of uint8 weights.

For each: whether the product with the worst inputs is exact (`worst_product_error`, a share of its largest number);
labels of the test set (accuracy, agreement with fp32, KL(fp32 || form)); texts per second, without tokenizing, one by
one and in a batch of 32, forms taking turns, medians over the rounds. The result says which instruction sets the
processor has: run it on one with VNNI as well to see what each form costs there.
"""

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
from onnx import numpy_helper
from onnx_encoder import BATCH, Form, accuracies, show, speeds
from peers import result_file
from transformers import AutoTokenizer

from edgeft.artifact import write_atomic
from edgeft.bench.encoder import text_of
from edgeft.bench.examples import read_examples, take
from edgeft.bench.host import backend_versions, describe_host
from edgeft.console import silent_log
from edgeft.export.onnx import encoders
from edgeft.export.onnx.encoders import EncoderSettings, export_encoder
from edgeft.export.onnx.int8_columns import quantize_columns
from edgeft.machine.instruction_sets import instruction_sets
from edgeft.machine.process import load_average
from edgeft.runtime.int8_pairs import adds_in_16_bits, find_overflow
from edgeft.runtime.onnx_file import check_onnx
from edgeft.runtime.onnx_session import WIDE_SUMS
from edgeft.runtime.ort import onnxruntime

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = "DynamicQuantizeMatMul"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--texts", type=int, default=None, help="test texts that accuracy is over (all)")
    parser.add_argument("--calibration", type=int, default=256, help="training texts")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="", help="what a reader should know of this run")
    parser.add_argument("--out", type=Path, default=result_file("int8_forms.json"))
    arguments = parser.parse_args()
    read = {part: read_examples(arguments.data_dir / f"{part}.jsonl") for part in ("train", "test")}
    train = [text_of(each) for each in take(read["train"], arguments.calibration, 0)]
    test = take(read["test"], arguments.texts, 0)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model_dir)
    before = load_average()
    with tempfile.TemporaryDirectory(prefix="int8-forms-") as temporary:
        paths = export_all(arguments.model_dir, Path(temporary), train)
        exact = {"8 bits, exact"}
        forms: dict[str, Form] = {
            name: form_of(path, arguments.threads, exact=name in exact) for name, path in paths.items()
        }
        answers = [each.answer for each in test]
        rows = accuracies(forms, [text_of(each) for each in test], answers, tokenizer, reference="fp32")
        for name, path in paths.items():
            overflow = find_overflow(check_onnx(path))
            rows[name] |= {
                "bytes": path.stat().st_size,
                "products_beyond_16_bits": len(overflow.weights) if overflow else 0,
            }
            rows[name]["worst_product_error"] = worst_product_error(path, exact=name in exact)
        texts = [text_of(each) for each in test[:: max(1, len(test) // BATCH)][:BATCH]]
        for name, rates in speeds(forms, texts, tokenizer, arguments.rounds).items():
            rows[name] |= rates
    for row in rows.values():
        for rate in ("texts_per_s_batch_1", "texts_per_s_batch_32"):
            row[f"{rate}_of_fp32"] = round(row[rate] / rows["fp32"][rate], 3)
    result = {
        "host": {**describe_host(), "instruction_sets": list(instruction_sets())},
        "adds_in_16_bits": adds_in_16_bits(),
        "load_average": {"before": before, "after": load_average()},
        "versions": backend_versions(),
        "note": arguments.note,
        "n_texts": len(test),
        "calibration_texts": len(train),
        "rounds": arguments.rounds,
        "n_threads": arguments.threads,
        "forms": rows,
    }
    write_atomic(arguments.out, json.dumps(result, indent=1) + "\n")
    show(rows)


def export_all(model_dir: Path, folder: Path, texts: list[str]) -> dict[str, Path]:
    """The ONNX file of every form, by its name."""

    def export(name: str, settings: EncoderSettings) -> Path:
        export_encoder(model_dir, folder / name, settings=settings, texts=texts, log=silent_log())
        return folder / name / "model.onnx"

    paths = {"fp32": export("fp32", EncoderSettings("fp32")), "pairs": export("pairs", EncoderSettings("int8"))}
    paths["pairs, static"] = export("static", EncoderSettings("int8_static", "percentile"))
    with patch.object(encoders, "quantize_pairs", partial(quantize_columns, reach=64)):
        paths["7 bits"] = export("7", EncoderSettings("int8"))
    paths["8 bits"] = paths["8 bits, exact"] = export("8", EncoderSettings("int8", reduce_range=False))
    paths["uint8"] = unsigned(paths["8 bits"], folder / "uint8.onnx")
    return paths


def unsigned(path: Path, out: Path) -> Path:
    """The same products with uint8 weights."""
    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == PRODUCT:
            tensor = tensors[node.input[1]]
            codes = (numpy_helper.to_array(tensor).astype(np.int16) + 128).astype(np.uint8)
            tensor.CopyFrom(numpy_helper.from_array(codes, tensor.name))
            node.input[3] = f"{tensor.name}.zero_point"
            middles = np.full(codes.shape[1], 128, np.uint8)
            model.graph.initializer.append(numpy_helper.from_array(middles, node.input[3]))
    onnx.save(model, out)
    return out


def form_of(path: Path, n_threads: int, *, exact: bool) -> Form:
    session = session_of(path.read_bytes(), n_threads, exact=exact)
    names = [each.name for each in session.get_inputs()]
    return lambda feed: np.asarray(session.run(None, {name: feed[name] for name in names})[0])


def session_of(model: bytes, n_threads: int, *, exact: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.log_severity_level = 4
    if exact:
        options.add_session_config_entry(WIDE_SUMS, "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def worst_product_error(path: Path, *, exact: bool) -> float | None:
    """Of the file's first product with every input at 255 where a weight's pair is positive, else 0."""
    model = onnx.load(path)
    node = next((each for each in model.graph.node if each.op_type == PRODUCT), None)
    if node is None:
        return None
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    codes = numpy_helper.to_array(tensors[node.input[1]])
    middle = 128 if codes.dtype == np.uint8 else 0
    kept = [tensors[name] for name in node.input[1:] if name]
    lone = onnx.NodeProto(op_type=PRODUCT, domain=node.domain, input=["x", *node.input[1:4]], output=["y"])
    put, given = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy")
    kept = [tensor for tensor in kept if tensor.name in lone.input]
    graph = onnx.helper.make_graph([lone], "product", [put], [given], kept)
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    lone_model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = session_of(lone_model.SerializeToString(), 1, exact=exact)
    signed = codes.astype(np.int64) - middle
    sums = signed[0::2] + signed[1::2]
    column = int(np.unravel_index(np.abs(sums).argmax(), sums.shape)[1])
    x = np.repeat(np.where(sums[:, column] > 0, 255, 0), 2)[None].astype(np.float32)
    x[0, :2] = (255, 0)  # the whole range, so that codes are the numbers themselves
    wanted = (x.astype(np.int64) @ signed) * numpy_helper.to_array(tensors[node.input[2]]).astype(np.float64)
    return float(np.abs(session.run(None, {"x": x})[0] - wanted).max() / np.abs(wanted).max())


if __name__ == "__main__":
    main()
