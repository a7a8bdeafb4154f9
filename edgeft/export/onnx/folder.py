"""The files around a graph, as the loaders of optimum, onnxruntime-genai and transformers.js want them."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.artifact import write_atomic
from edgeft.export.folder import ModelFolder
from edgeft.export.onnx.architectures.base import Decoder
from edgeft.export.onnx.settings import OnnxSettings

COPIED = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "chat_template.jinja", "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip
SUFFIXES = {"fp32": "", "fp16": "_fp16", "int8": "_quantized", "int4": "_q4"}
"""transformers.js' file names (`src/utils/dtypes.js`); int4 in float16 is `_q4f16`."""

OLDER_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}

GENAI_TYPES = {
    "gemma2", "gemma3_text", "granite", "llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3",
}  # fmt: skip
"""What onnxruntime-genai 0.18 runs as one decoder. Any other is given it as `llama`: the type changes nothing else."""


@dataclass(frozen=True)
class Files:
    """Where graph and weights go, relative to the folder."""

    graph: str
    data: str


def files_of(settings: OnnxSettings) -> Files:
    """`model.onnx` and `model.onnx.data`, or transformers.js' `onnx/model_q4.onnx` and `onnx/model_q4.onnx_data`."""
    if settings.layout != "transformers.js":
        return Files("model.onnx", "model.onnx.data")
    half = "f16" if settings.half and settings.dtype != "fp16" else ""
    stem = f"onnx/model{SUFFIXES[settings.dtype]}{half}.onnx"
    return Files(stem, f"{stem}_data")


def write_surroundings(folder: ModelFolder, out: Path, decoder: Decoder, settings: OnnxSettings) -> None:
    """Copy tokenizer and configuration into `out`; add what the layout wants of its own."""
    copy_files(folder, out, COPIED)
    if settings.layout == "transformers.js":
        say_external_data(out, Path(files_of(settings).graph).name)
        if folder.chat_template is not None:  # it reads no chat_template.jinja
            named = {**_older_class(folder.tokenizer_config), "chat_template": folder.chat_template}
            _write_json(out / "tokenizer_config.json", named)
    elif settings.layout == "genai":
        _write_json(out / "genai_config.json", genai_config(folder, decoder))


def copy_files(folder: ModelFolder, out: Path, names: Iterable[str]) -> None:
    """Copy those of the files `names` that the model folder has into `out`, a tokenizer's class by its older name."""
    for name in names:
        if (folder.path / name).is_file():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder.path / name, out / name)
    if folder.tokenizer_config.get("tokenizer_class") in OLDER_CLASSES:
        _write_json(out / "tokenizer_config.json", _older_class(folder.tokenizer_config))


def say_external_data(out: Path, graph: str) -> None:
    """Tell transformers.js in config.json that the weights of `graph` lie beside it."""
    add_to_config(out, {"transformers.js_config": {"use_external_data_format": {graph: 1}}})


def add_to_config(out: Path, fields: dict[str, Any]) -> None:
    """Other values in config.json of the folder `out`."""
    config = json.loads((out / "config.json").read_text("utf-8"))
    _write_json(out / "config.json", {**config, **fields})


def _older_class(tokenizer_config: dict[str, Any]) -> dict[str, Any]:
    """What transformers 4, and so optimum-onnx, calls a tokenizer that is all in tokenizer.json; 5 knows it too."""
    name = tokenizer_config.get("tokenizer_class")
    return {**tokenizer_config, "tokenizer_class": OLDER_CLASSES[name]} if name in OLDER_CLASSES else tokenizer_config


def genai_config(folder: ModelFolder, decoder: Decoder) -> dict[str, Any]:
    """onnxruntime-genai's description of the graph (https://onnxruntime.ai/docs/genai/reference/config.html)."""
    config = folder.config.get("text_config") or folder.config
    kind = config.get("model_type")
    ids = {token: _token_id(folder, token) for token in ("bos", "eos")}
    end = ids["eos"][0] if isinstance(ids["eos"], list) else ids["eos"]
    pad = _token_id(folder, "pad")
    heads = {
        "head_size": decoder.head_dim,
        "hidden_size": decoder.width,
        "num_attention_heads": decoder.n_heads,
        "num_hidden_layers": len(decoder.layers),
        "num_key_value_heads": decoder.n_kv_heads,
    }
    names = {part: part for part in ("input_ids", "attention_mask", "position_ids")}
    inputs = names | {f"past_{part}_names": f"past_key_values.%d.{part}" for part in ("key", "value")}
    outputs = {"logits": "logits"} | {f"present_{part}_names": f"present.%d.{part}" for part in ("key", "value")}
    session = {"log_id": "onnxruntime-genai", "provider_options": []}
    graph = {"session_options": session, "filename": "model.onnx", **heads, "inputs": inputs, "outputs": outputs}
    tokens = {f"{token}_token_id": value for token, value in ids.items() if value is not None}
    return {
        "model": {
            "type": kind if kind in GENAI_TYPES else "llama",
            "vocab_size": decoder.n_vocab,
            "context_length": decoder.n_context,
            "pad_token_id": pad if pad is not None else end,
            **tokens,
            "decoder": graph,
        },
        "search": {"do_sample": False, "max_length": decoder.n_context, "past_present_share_buffer": True},
    }


def _token_id(folder: ModelFolder, token: str) -> Any:
    """As the generation's configuration says, or the model's, or the tokenizer's."""
    key = f"{token}_token_id"
    for content in (folder.generation_config, folder.config):
        if content.get(key) is not None:
            return content[key]
    return folder.special_id(token)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(content, indent=2) + "\n")
