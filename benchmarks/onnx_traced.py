"""A decoder traced by transformers' own exporter, as a folder our runtime opens: a peer of `onnx_decode.py`.

    python benchmarks/onnx_traced.py MODEL_FOLDER OUT [--int4]

Writes OUT-fp32/ and with --int4 OUT-int4/, whose MatMul nodes onnxruntime's MatMulNBits quantizer packed (blocks of
32, symmetric, accuracy level 4). The exporter's names of keys and values are changed to optimum's.
"""

import argparse
import re
import shutil
import time
from pathlib import Path

import onnx
import onnx_ir
import torch
from transformers import AutoModelForCausalLM
from transformers.exporters import OnnxConfig, OnnxExporter
from transformers.exporters.utils import decompose_for_generation

from edgeft.runtime.ort import imported

CACHE = re.compile(r"(input|output)\.past_key_values\.layers\.(\d+)\.(key|value)s")
PREFIXES = {"input": "past_key_values", "output": "present"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--int4", action="store_true")
    arguments = parser.parse_args()
    start = time.perf_counter()
    plain = folder_beside(arguments.model, arguments.out.with_name(f"{arguments.out.name}-fp32"))
    trace(arguments.model, plain / "model.onnx")
    print(f"fp32: {time.perf_counter() - start:.1f} s")
    if arguments.int4:
        packed = folder_beside(arguments.model, arguments.out.with_name(f"{arguments.out.name}-int4"))
        pack(plain / "model.onnx", packed / "model.onnx")
        print(f"int4: {time.perf_counter() - start:.1f} s")


def folder_beside(model: Path, out: Path) -> Path:
    """A new folder with the tokenizer and configuration of `model`."""
    out.mkdir(parents=True)
    for path in [*model.glob("*.json"), *model.glob("*.jinja")]:
        if ".index." not in path.name:
            shutil.copy(path, out)
    return out


def trace(model_dir: Path, path: Path) -> None:
    """One graph for prompt and decoding, in float32."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    module, inputs = decompose_for_generation(model, asked, multi_token_decode=True)["decode"]
    exported = OnnxExporter().export(module, inputs, OnnxConfig(dynamic=True, ort_fusions="cpu"))
    graph = exported.program
    for value in (*graph.graph.inputs, *graph.graph.outputs):
        if found := CACHE.fullmatch(value.name or ""):
            value.name = f"{PREFIXES[found[1]]}.{found[2]}.{found[3]}"
    onnx_ir.save(graph, str(path), external_data=f"{path.name}.data")


def pack(plain: Path, path: Path) -> None:
    """The matrices in 4 bits."""
    MatMulNBitsQuantizer = imported("onnxruntime.quantization.matmul_nbits_quantizer").MatMulNBitsQuantizer  # noqa: N806

    quantizer = MatMulNBitsQuantizer(onnx.load(plain), block_size=32, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(path), use_external_data_format=True)


if __name__ == "__main__":
    main()
