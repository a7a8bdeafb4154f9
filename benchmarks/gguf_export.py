"""Model folder to GGUF file: our one pass against llama.cpp's converter and quantizer, as whole processes.

    python benchmarks/gguf_export.py --llama-cpp SOURCE --llama-quantize PROGRAM [--rounds 3] [--out FILE]

SOURCE is llama.cpp's source tree (its convert_hf_to_gguf.py, conversion/ and gguf-py/; the environment variable
LLAMA_CPP_SOURCE), PROGRAM its llama-quantize (LLAMA_QUANTIZE). Models of random bfloat16 weights in the shapes of
SmolLM2-135M and Qwen2.5-0.5B, with byte-level BPE tokenizers of their size made here; a 3B Llama, in four shards,
for our peak memory alone. The converter knows tokenizers by the hash of a test string, so it is told the
pre-tokenizer of ours. Wall and processor seconds and peak resident memory of each process; runs take turns.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from peers import SHAPES, result_file

from edgeft.bench.host import describe_host

ROOT = Path(__file__).resolve().parent.parent
LLAMA_3B = {
    "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8,
    "intermediate_size": 8192, "vocab_size": 128_256,
}  # fmt: skip
MODELS = {
    "smollm2-135m": ("llama", "smollm", SHAPES["smollm2-135m"]),
    "qwen2.5-0.5b": ("qwen2", "qwen2", SHAPES["qwen2.5-0.5b"]),
    "llama-3b": ("llama", "llama-bpe", LLAMA_3B),
}
FTYPES = ("BF16", "Q4_K_M")
FTYPES_OF_3B = ("BF16", "Q8_0")
GPT4_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {"qwen2": GPT4_SPLIT.replace("{1,3}", ""), "llama-bpe": GPT4_SPLIT}
# The converter with the name of our tokenizer's splitting rule put in; it asks for sentencepiece to find no use for it.
CONVERTER = """
import runpy, sys, types
from conversion import base
sys.modules.setdefault("sentencepiece", types.SimpleNamespace(SentencePieceProcessor=None))
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: {pre!r}
sys.argv = ["convert_hf_to_gguf.py", *sys.argv[1:]]
runpy.run_path({script!r}, run_name="__main__")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", type=Path, default=os.environ.get("LLAMA_CPP_SOURCE"))
    parser.add_argument("--llama-quantize", type=Path, default=os.environ.get("LLAMA_QUANTIZE"))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="Where models and files are made. [a temporary folder]")
    parser.add_argument("--out", type=Path, default=result_file("gguf_export.json"))
    arguments = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        for model in arguments.models:
            folder = make_model(Path(scratch) / model, model)
            for _ in range(arguments.rounds if model != "llama-3b" else 1):
                runs += _ours(model, folder, Path(scratch))
                if model != "llama-3b":
                    runs += _theirs(model, folder, Path(scratch), arguments.llama_cpp, arguments.llama_quantize)
    result = {"host": describe_host(), **_compared(runs), "runs": runs}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(_compared(runs), indent=2))


def _ours(model: str, folder: Path, scratch: Path) -> list[dict[str, Any]]:
    runs = []
    for ftype in FTYPES if model != "llama-3b" else FTYPES_OF_3B:
        command = [sys.executable, "-m", "edgeft", "export", "gguf", str(folder), "--ftype", ftype]
        run = _timed([*command, "--out", str(scratch / "ours")], {})
        runs.append({"contender": "edgeft", "model": model, "ftype": ftype, **run})
        next((scratch / "ours").glob("*.gguf")).unlink()
    return runs


def _theirs(model: str, folder: Path, scratch: Path, source: Path, quantizer: Path) -> list[dict[str, Any]]:
    """BF16 is the converter's run; for Q4_K_M the quantizer's is added: seconds summed, the larger memory."""
    bf16, q4 = scratch / "theirs-bf16.gguf", scratch / "theirs-q4.gguf"
    code = CONVERTER.format(pre=MODELS[model][1], script=str(source / "convert_hf_to_gguf.py"))
    path = os.pathsep.join([str(source), str(source / "gguf-py")])
    convert = _timed(
        [sys.executable, "-c", code, str(folder), "--outtype", "bf16", "--outfile", str(bf16)], {"PYTHONPATH": path}
    )
    quantize = _timed([str(quantizer), str(bf16), str(q4), "Q4_K_M"], {})
    bf16.unlink()
    q4.unlink()
    both = {key: convert[key] + quantize[key] for key in ("wall_s", "cpu_s")}
    both["peak_rss_mb"] = max(convert["peak_rss_mb"], quantize["peak_rss_mb"])
    return [
        {"contender": "llama.cpp", "model": model, "ftype": "BF16", **convert},
        {"contender": "llama.cpp", "model": model, "ftype": "Q4_K_M", **both},
    ]


def _timed(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    load, start = os.getloadavg()[0], time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=os.environ | environment)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        if status:
            log.seek(0)
            raise SystemExit(f"{' '.join(command[:4])} failed:\n{log.read()[-3000:]}")
    return {
        "wall_s": wall,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_rss_mb": usage.ru_maxrss / 1000,
        "load_before": load,
    }


def _compared(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians by model, ftype and contender, and llama.cpp's over ours (memory: ours over llama.cpp's)."""
    median: dict[str, Any] = {}
    for run in runs:
        same = [r for r in runs if all(r[k] == run[k] for k in ("model", "ftype", "contender"))]
        key = f"{run['model']} {run['ftype']}"
        numbers = {k: statistics.median(r[k] for r in same) for k in ("wall_s", "cpu_s", "peak_rss_mb")}
        median.setdefault(key, {})[run["contender"]] = numbers
    ratios = {
        key: {
            "wall": table["llama.cpp"]["wall_s"] / table["edgeft"]["wall_s"],
            "cpu": table["llama.cpp"]["cpu_s"] / table["edgeft"]["cpu_s"],
            "peak_rss": table["edgeft"]["peak_rss_mb"] / table["llama.cpp"]["peak_rss_mb"],
        }
        for key, table in median.items()
        if "llama.cpp" in table
    }
    return {"median": median, "ratios": ratios}


def make_model(folder: Path, name: str) -> Path:
    """Write a model folder of random bfloat16 weights with a tokenizer as large as its embedding."""
    model_type, pre, shape = MODELS[name]
    folder.mkdir(parents=True)
    tied = name != "llama-3b"
    config = shape | {
        "model_type": model_type,
        "architectures": [{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[model_type]],
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": tied, "torch_dtype": "bfloat16", "attention_bias": False, "mlp_bias": False,
        "bos_token_id": 0, "eos_token_id": 0, "use_sliding_window": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    _write_tokenizer(folder, shape["vocab_size"], pre)
    tensors = _tensors(shape, biases=model_type == "qwen2", tied=tied)
    n_shards = 4 if name == "llama-3b" else 1
    places: dict[str, str] = {}
    for number in range(n_shards):
        part = dict(list(tensors.items())[number::n_shards])
        file = "model.safetensors" if n_shards == 1 else f"model-{number + 1:05}-of-{n_shards:05}.safetensors"
        _write_safetensors(folder / file, part)
        places |= dict.fromkeys(part, file)
    if n_shards > 1:
        index = {"metadata": {}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def _tensors(shape: dict[str, int], *, biases: bool, tied: bool) -> dict[str, tuple[int, ...]]:
    width, inner, heads = shape["hidden_size"], shape["intermediate_size"], shape["num_attention_heads"]
    kv_width = width // heads * shape["num_key_value_heads"]
    tensors: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (shape["vocab_size"], width),
        "model.norm.weight": (width,),
    }
    if not tied:
        tensors["lm_head.weight"] = (shape["vocab_size"], width)
    for layer in range(shape["num_hidden_layers"]):
        rows = {
            "self_attn.q_proj": (width, width), "self_attn.k_proj": (kv_width, width),
            "self_attn.v_proj": (kv_width, width), "self_attn.o_proj": (width, width), "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner),
            "input_layernorm": (width,), "post_attention_layernorm": (width,),
        }  # fmt: skip
        tensors |= {f"model.layers.{layer}.{name}.weight": size for name, size in rows.items()}
        if biases:
            tensors |= {f"model.layers.{layer}.self_attn.{n}_proj.bias": rows[f"self_attn.{n}_proj"][:1] for n in "qkv"}
    return tensors


def _write_safetensors(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    """Normal weights of deviation 0.02 in bfloat16, made from one block of random numbers shifted about."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, size in tensors.items():
        end = at + 2 * int(np.prod(size))
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [at, end]}
        at = end
    encoded = json.dumps(header).encode()
    source = np.random.default_rng(0)
    block = (source.standard_normal(1 << 24, np.float32) * np.float32(0.02)).view(np.uint32) >> 16
    bits = block.astype(np.uint16)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for size in tensors.values():
            left = int(np.prod(size))
            while left:
                start = int(source.integers(0, len(bits) // 2))
                piece = bits[start : start + left]
                file.write(piece.tobytes())
                left -= len(piece)


def _write_tokenizer(folder: Path, n_vocab: int, pre: str) -> None:
    """A byte-level BPE tokenizer of `n_vocab` tokens: bytes, then merges of random pairs of what is there."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    source, letters = random.Random(0), pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {"<|endoftext|>": 0} | {letter: i for i, letter in enumerate(sorted(letters), 1)}
    known, merges = sorted(letters), []
    while len(vocabulary) < n_vocab:
        pair = (source.choice(known[:4000]), source.choice(known[:4000]))
        if "".join(pair) not in vocabulary:
            vocabulary["".join(pair)] = len(vocabulary)
            known.append("".join(pair))
            merges.append(pair)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    split = (
        pre_tokenizers.Digits(individual_digits=True)
        if pre == "smollm"
        else pre_tokenizers.Split(Regex(SPLITS[pre]), "isolated")
    )
    use_regex = pre == "smollm"
    bytes_rule = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_rule])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    end = "<|endoftext|>"
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end, "unk_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


if __name__ == "__main__":
    main()
