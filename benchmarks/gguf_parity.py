"""Does llama.cpp compute of our GGUF files what transformers computes of the models they came from?

Tiny random models of every architecture (`tests/tiny_models.py`), written as F32, F16, Q8_0 and Q4_K_M. Of each
file: mean KL in nats and equal most likely tokens over 128 random tokens, and for F32 greedy tokens equal of 128.
Encoders: the relative error of their vectors or class scores. With `--reference`, a llama.cpp source tree, each F16
file is also held against its converter's: tensors by name, type, shape and bytes, and keys.

    PYTHONPATH=. python benchmarks/gguf_parity.py [--reference llama.cpp] [--docs PAGE]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

from edgeft.bench.host import describe_host
from edgeft.console import silent_log
from edgeft.export.gguf import write_gguf
from edgeft.parity.numbers import kl_divergence, top1_agrees
from tests.llama_outputs import ExactLlama, LlamaEncoder
from tests.tiny_models import DECODERS, ENCODERS, make_model

RESULTS = Path(__file__).resolve().parent / "results" / "gguf_parity.json"
FTYPES = ("F32", "F16", "Q8_0", "Q4_K_M")
N_SCORED, N_PROMPT, N_GENERATED, N_CONTEXT = 128, 16, 128, 256
START, END = "<!-- made by benchmarks/gguf_parity.py -->", "<!-- end -->"
NOT_COMPARED = ("general.", "edgeft.", "tokenizer.", "quantize.", "GGUF.")
"""Keys that are not the architecture's."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", type=Path, help="a llama.cpp source tree with convert_hf_to_gguf.py")
    parser.add_argument("--docs", type=Path, help="the page whose table is written anew")
    parser.add_argument("--kind", action="append", help="only these models")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    models = {}
    for kind in arguments.kind or [*DECODERS, *ENCODERS]:
        with tempfile.TemporaryDirectory() as scratch:
            models[kind] = measure(kind, Path(scratch), arguments.reference)
        print(kind, json.dumps(models[kind]), flush=True)
    if not arguments.kind:
        record = {"host": describe_host(), "n_scored": N_SCORED, "n_generated": N_GENERATED, "models": models}
        RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if arguments.docs:
        write_table(arguments.docs, models)


def measure(kind: str, scratch: Path, reference: Path | None) -> dict[str, Any]:
    """The numbers of one model, by ftype."""
    folder = make_model(scratch / "model", kind)
    files = {ftype: scratch / f"{ftype}.gguf" for ftype in FTYPES}
    for ftype, file in files.items():
        write_gguf(folder, file, ftype=ftype, name="tiny", provenance={}, log=silent_log())
    model = getattr(transformers, (DECODERS | ENCODERS)[kind][0]).from_pretrained(folder, attn_implementation="eager")
    ids = np.random.default_rng(0).integers(3, 259, N_SCORED).tolist()
    compare = _decoder if kind in DECODERS else _encoder
    numbers: dict[str, Any] = compare(model.eval(), files, ids)
    if reference is not None:
        numbers["reference"] = differences(files["F16"], _convert(reference, folder, scratch))
    return numbers


def _decoder(model: Any, files: Mapping[str, Path], ids: list[int]) -> dict[str, Any]:
    with torch.inference_mode():
        theirs = model(torch.tensor([ids])).logits[0].numpy()
        model.generation_config.eos_token_id = None
        prompt = torch.tensor([ids[:N_PROMPT]])
        expected = model.generate(prompt, max_new_tokens=N_GENERATED, do_sample=False)[0, N_PROMPT:].tolist()
    numbers: dict[str, Any] = {}
    for ftype, file in files.items():
        with ExactLlama(file, n_ctx=N_CONTEXT) as llama:
            ours = llama.score(ids)
            numbers[ftype] = {
                "mean_kl_nats": float(kl_divergence(theirs, ours).mean()),
                "top1_agreement": float(top1_agrees(theirs, ours).mean()),
            }
            if ftype == "F32":
                options = {"max_new_tokens": N_GENERATED, "ignore_eos": True, "temperature": 0.0}
                tokens = list(llama.stream(ids[:N_PROMPT], **options))
                numbers[ftype]["equal_greedy_tokens"] = _n_equal(tokens, expected)
    return numbers


def _n_equal(ours: list[int], theirs: list[int]) -> int:
    """Tokens before the first that differs."""
    return next((at for at, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]), len(ours))


def _encoder(model: Any, files: Mapping[str, Path], ids: list[int]) -> dict[str, Any]:
    with torch.inference_mode():
        output = model(torch.tensor([ids]))
    theirs = (output.logits if "logits" in output else output.last_hidden_state)[0].numpy()
    numbers = {}
    for ftype, file in files.items():
        with LlamaEncoder(file, n_ctx=N_CONTEXT) as llama:
            error = np.linalg.norm(llama.embed(ids) - theirs) / np.linalg.norm(theirs)
        numbers[ftype] = {"relative_error": float(error)}
    return numbers


CONVERT = """
import importlib.machinery, runpy, sys, types
sentencepiece = types.ModuleType("sentencepiece")
sentencepiece.__spec__ = importlib.machinery.ModuleSpec("sentencepiece", None)
sentencepiece.SentencePieceProcessor = sentencepiece.sentencepiece_model_pb2 = object
sys.modules["sentencepiece"] = sentencepiece
sys.path.insert(0, sys.argv[1])
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda *_: "gpt-2"
TextModel._set_vocab_sentencepiece = TextModel._set_vocab_gpt2
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""The reference converter, told which tokenizer the tiny models have: it knows only those of released models."""


def _convert(reference: Path, folder: Path, scratch: Path) -> Path | str:
    """The reference converter's F16 file, or why it made none: the last line it said."""
    file = scratch / "reference.gguf"
    script = [sys.executable, "-c", CONVERT, str(reference), str(reference / "convert_hf_to_gguf.py")]
    command = [*script, str(folder), "--outfile", str(file), "--outtype", "f16"]
    environment = os.environ | {"PYTHONPATH": str(reference / "gguf-py")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return file
    return (done.stderr.strip().splitlines() or ["no word"])[-1].replace(f"{folder}/", "")


def differences(ours: Path, theirs: Path | str) -> dict[str, Any]:
    """What the two files have otherwise; `tensors` and `keys` are empty where they are equal."""
    if isinstance(theirs, str):
        return {"failed": theirs}
    a, b = gguf.GGUFReader(ours), gguf.GGUFReader(theirs)
    tensors = [{tensor.name: tensor for tensor in reader.tensors} for reader in (a, b)]
    names = sorted(set(tensors[0]) | set(tensors[1]))
    keys = [{key: field.contents() for key, field in reader.fields.items()} for reader in (a, b)]
    wanted = sorted(key for key in set(keys[0]) | set(keys[1]) if not key.startswith(NOT_COMPARED))
    return {
        "n_tensors": len(names),
        "tensors": [name for name in names if not _same(tensors[0].get(name), tensors[1].get(name))],
        "keys": {key: [keys[0].get(key), keys[1].get(key)] for key in wanted if keys[0].get(key) != keys[1].get(key)},
    }


def _same(ours: Any, theirs: Any) -> bool:
    if ours is None or theirs is None or ours.tensor_type != theirs.tensor_type:
        return False
    return ours.shape.tolist() == theirs.shape.tolist() and ours.data.tobytes() == theirs.data.tobytes()


def write_table(page: Path, models: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the numbers between the two marks of `page`."""
    lines = [
        "| decoder | greedy tokens equal, F32 | mean KL F32 | F16 | top-1 F16 | KL Q8_0 | KL Q4_K_M |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in (kind for kind in models if kind in DECODERS):
        row = models[kind]
        kls = {ftype: f"{row[ftype]['mean_kl_nats']:.1e}" for ftype in FTYPES}
        equal, agreement = row["F32"]["equal_greedy_tokens"], row["F16"]["top1_agreement"]
        start = f"| {kind} | {equal} of {N_GENERATED} | {kls['F32']} | {kls['F16']} | {agreement:.3f} |"
        lines.append(f"{start} {kls['Q8_0']} | {kls['Q4_K_M']} |")
    lines += ["", "| encoder | relative error F32 | F16 | Q8_0 | Q4_K_M |", "|---|---|---|---|---|"]
    for kind in (kind for kind in models if kind in ENCODERS):
        errors = " | ".join(f"{models[kind][ftype]['relative_error']:.1e}" for ftype in FTYPES)
        lines.append(f"| {kind} | {errors} |")
    before, _, rest = page.read_text(encoding="utf-8").partition(START)
    after = rest.partition(END)[2]
    page.write_text("\n".join([before + START, *lines, END + after]), encoding="utf-8")


if __name__ == "__main__":
    main()
