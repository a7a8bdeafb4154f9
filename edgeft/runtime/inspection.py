"""What a model file or folder says about itself, and what is odd about it, without loading it.

Standard library only: a device without any backend can look at a file.
"""

import json
import math
from array import array
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgeft.checkpoint_files import weight_files
from edgeft.errors import ModelError
from edgeft.runtime.gguf_format import Header, Value
from edgeft.runtime.header import check_gguf
from edgeft.runtime.llama_defaults import with_defaults
from edgeft.runtime.onnx_file import OnnxFile, check_onnx, find_file, holds_onnx

Facts = dict[str, Any]

PROVENANCE = ("edgeft.", "general.source", "general.base_model", "general.license", "general.author", "general.url")
NOT_HYPER = ("tokenizer.", "general.", "edgeft.")
SAFETENSORS_BITS = {
    "F64": 64, "I64": 64, "F32": 32, "I32": 32, "F16": 16, "BF16": 16, "I16": 16, "F8_E4M3": 8, "F8_E5M2": 8,
    "I8": 8, "U8": 8, "BOOL": 8,
}  # fmt: skip
ONNX_TYPES = {
    1: "FLOAT", 2: "UINT8", 3: "INT8", 5: "INT16", 6: "INT32", 7: "INT64", 9: "BOOL", 10: "FLOAT16", 11: "DOUBLE",
    16: "BFLOAT16", 21: "UINT4", 22: "INT4",
}  # fmt: skip
"""`TensorProto.DataType`."""
MAX_HEADER_BYTES = 100_000_000


def inspect_model(path: Path) -> Facts:
    """Facts about the GGUF file, the ONNX file or folder, or the safetensors folder `path`, as plain data.

    Keys: `path`, `format`, `bytes`, `architecture`, `hyperparameters`, `types` (per tensor type: tensors, weights,
    bytes), `tensors` (name, type, shape, bytes, byte offset), `tokenizer`, `chat_template`, `provenance`, `odd`
    (sentences). Raises ModelError when it is none of them, is damaged, or cannot be read.
    """
    if holds_onnx(path):
        return _onnx_facts(path)
    reader = _folder_facts if path.is_dir() else BY_SUFFIX.get(path.suffix, _gguf_facts)
    return reader(path)


def _gguf_facts(path: Path) -> Facts:
    header = check_gguf(path)
    tensors = [
        {
            "name": tensor.name,
            "type": tensor.type_name,
            "shape": list(tensor.shape),
            "bytes": tensor.n_bytes,
            "start": tensor.start,
        }
        for tensor in header.tensors.values()
    ]
    return {
        "path": str(path),
        "format": f"GGUF {header.version}",
        "bytes": header.n_bytes,
        "name": header.get("general.name"),
        "architecture": header.architecture,
        "hyperparameters": {
            key: _plain(value) for key, value in header.values.items() if not key.startswith(NOT_HYPER)
        },
        "defaults": _defaults(header),
        "types": _by_type(tensors),
        "tensors": tensors,
        "tokenizer": _tokenizer(header),
        "chat_template": header.get("tokenizer.chat_template"),
        "provenance": {key: _plain(value) for key, value in header.values.items() if key.startswith(PROVENANCE)},
        "odd": list(_oddities(header)),
    }


def _defaults(header: Header) -> Facts:
    """What llama.cpp takes for the keys of the architecture that the file leaves out."""
    prefix = f"{header.architecture}."
    keys = {key.removeprefix(prefix): one.value for key, one in header.values.items() if key.startswith(prefix)}
    full = with_defaults(header.architecture, keys, len(header.get("tokenizer.ggml.tokens", ())))
    return {f"{prefix}{key}": value for key, value in full.items() if key not in keys}


def _plain(value: Value) -> Any:
    """A metadata value for JSON; a float32 in as few digits as tell it from its neighbours."""
    if isinstance(value.value, array):
        return value.value.tolist()
    if value.item_kind is not None:
        return [text.decode(errors="replace") for text in value.value]
    if isinstance(value.value, float):
        return float(f"{value.value:.7g}")
    return value.value


def _tokenizer(header: Header) -> Facts:
    tokens = header.get("tokenizer.ggml.tokens")
    special = {}
    for key, value in header.values.items():
        if key.startswith("tokenizer.ggml.") and key.endswith("_token_id"):
            name = key.removeprefix("tokenizer.ggml.").removesuffix("_token_id")
            special[name] = {"id": value.value, "text": tokens[value.value].decode(errors="replace")}
    flags = [key for key in ("add_bos_token", "add_eos_token", "add_space_prefix") if _flag(header, key) is not None]
    return {
        "kind": header.get("tokenizer.ggml.model"),
        "pre": header.get("tokenizer.ggml.pre"),
        "size": len(tokens),
        "merges": len(header.get("tokenizer.ggml.merges", ())),
        "special": special,
        "flags": {key: _flag(header, key) for key in flags},
    }


def _flag(header: Header, key: str) -> Any:
    return header.get(f"tokenizer.ggml.{key}")


def _oddities(header: Header) -> Iterable[str]:
    """What is allowed and still deserves a look."""
    n_tokens = len(header.get("tokenizer.ggml.tokens"))
    n_vocab = header.get(f"{header.architecture}.vocab_size", n_tokens)
    if n_vocab != n_tokens:
        yield f"{header.architecture}.vocab_size is {n_vocab}, but there are {n_tokens} tokens"
    if len(header.get("tokenizer.ggml.scores", ())) > n_tokens:
        yield "there are more scores than tokens"
    if header.get("tokenizer.ggml.model") == "gpt2" and not header.get("tokenizer.ggml.pre"):
        yield "tokenizer.ggml.pre is missing: text will be split by a default rule, probably not the model's"
    if "tokenizer.ggml.eos_token_id" not in header.values:
        yield "no end token is named: answers may not stop"
    if not header.get("tokenizer.chat_template"):
        yield "there is no chat template: it cannot answer messages"
    end = max((tensor.start + tensor.n_bytes for tensor in header.tensors.values()), default=header.n_bytes)
    if header.n_bytes - end > header.alignment:
        yield f"{header.n_bytes - end} bytes follow the last tensor"
    wide = {tensor.type_name for tensor in header.tensors.values() if len(tensor.shape) == 1} - {"F32"}
    if wide:
        yield f"vectors are stored as {', '.join(sorted(wide))}; llama.cpp's own tools keep F32"


def _onnx_facts(path: Path) -> Facts:
    file, folder = find_file(path)
    graph = check_onnx(file)
    config = _read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    tensors, places = [], set()
    for tensor in graph.tensors:
        place = (tensor.location, tensor.offset)
        if tensor.location and place in places:  # the same bytes under another type
            continue
        places.add(place)
        kind = ONNX_TYPES.get(tensor.kind, f"type {tensor.kind}")
        shown = {"name": tensor.name, "type": kind, "shape": list(tensor.shape), "bytes": tensor.n_bytes}
        tensors.append({**shown, "start": tensor.offset})
    operators = Counter(node.op for node in graph.nodes)
    template = _template_of(folder)
    return {
        "path": str(path),
        "format": f"ONNX {graph.ir_version}",
        "bytes": graph.weight_bytes,
        "name": folder.absolute().name,
        "architecture": config.get("model_type"),
        "hyperparameters": {f"opset {name}": version for name, version in graph.opsets.items()}
        | {"written by": graph.producer}
        | {op: f"{count} nodes" for op, count in operators.most_common()},
        "types": _by_type(tensors),
        "tensors": tensors,
        "tokenizer": _folder_tokenizer(folder),
        "chat_template": template,
        "provenance": graph.metadata,
        "odd": [
            *_int8_oddities(graph),
            *([] if template else ["there is no chat template: it cannot answer messages"]),
        ],
    }


def _int8_oddities(graph: OnnxFile) -> Iterable[str]:
    """Sums that not every processor adds up; told where numpy is there to look at the weights."""
    try:
        from edgeft.runtime.int8_pairs import find_overflow
    except ImportError:
        return
    if overflow := find_overflow(graph):
        yield f"{overflow}: export it again, unless it is for those with VNNI or for ARM alone"


def _template_of(folder: Path) -> str | None:
    """Beside the model, or in its tokenizer_config.json."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if not (folder / "tokenizer_config.json").is_file():
        return None
    inside = _read_json(folder / "tokenizer_config.json").get("chat_template")
    return inside if isinstance(inside, str) else None


def _folder_facts(path: Path) -> Facts:
    config = _read_json(path / "config.json")
    files = weight_files(path)
    if not files:
        raise ModelError(
            f"{path}: there are no weights (model.safetensors, or its index with shards) beside its config.json"
        )
    tensors = [tensor for file in files for tensor in _safetensors(file)]
    template = path / "chat_template.jinja"
    plain = {key: value for key, value in config.items() if isinstance(value, int | float | str | bool)}
    shown = ("model_type", "transformers_version")
    return {
        "path": str(path),
        "format": "safetensors",
        "bytes": sum(file.stat().st_size for file in files),
        "name": path.absolute().name,
        "architecture": config.get("model_type"),
        "hyperparameters": {key: value for key, value in plain.items() if key not in shown},
        "types": _by_type(tensors),
        "tensors": tensors,
        "tokenizer": _folder_tokenizer(path),
        "chat_template": template.read_text(encoding="utf-8") if template.is_file() else None,
        "provenance": {key: config[key] for key in ("transformers_version", "_name_or_path") if key in config},
        "odd": [] if (path / "tokenizer.json").is_file() else ["tokenizer.json is missing: it cannot be exported"],
    }


def _folder_tokenizer(path: Path) -> Facts:
    if not (path / "tokenizer.json").is_file():
        return {}
    model = _read_json(path / "tokenizer.json").get("model")
    if not isinstance(model, dict):
        raise ModelError(f"{path / 'tokenizer.json'}: not a tokenizer (it has no `model`)")
    vocabulary, merges = model.get("vocab") or (), model.get("merges") or ()
    return {"kind": model.get("type"), "size": len(vocabulary), "merges": len(merges)}


def _safetensors(path: Path) -> list[Facts]:
    """The tensors of one file; the format is a length, a JSON header, then raw bytes."""
    try:
        with path.open("rb") as file:
            n_header = int.from_bytes(file.read(8), "little")
            if not 2 <= n_header <= min(MAX_HEADER_BYTES, path.stat().st_size - 8):
                raise ModelError(f"{path}: damaged or cut short; copy or save it again")
            entries = json.loads(file.read(n_header))
        entries.pop("__metadata__", None)
        tensors: list[Facts] = [
            {
                "name": str(name),
                "type": str(entry["dtype"]),
                "shape": [int(size) for size in entry["shape"]],
                "bytes": int(entry["data_offsets"][1]) - int(entry["data_offsets"][0]),
                "start": 8 + n_header + int(entry["data_offsets"][0]),
            }
            for name, entry in entries.items()
        ]
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        raise ModelError(f"{path}: damaged: its header is no list of tensors; copy or save it again") from None
    for tensor in tensors:
        bits = SAFETENSORS_BITS.get(tensor["type"])
        wanted = tensor["bytes"] if bits is None else math.prod(tensor["shape"]) * bits // 8
        if tensor["bytes"] != wanted or tensor["start"] + wanted > path.stat().st_size:
            raise ModelError(f"{path}: damaged or cut short: {tensor['name']}; copy or save it again")
    return tensors


def _by_type(tensors: Iterable[Facts]) -> dict[str, dict[str, int]]:
    """{type: {tensors, weights, bytes}}, most bytes first."""
    types: dict[str, dict[str, int]] = {}
    for tensor in tensors:
        row = types.setdefault(tensor["type"], {"tensors": 0, "weights": 0, "bytes": 0})
        row["tensors"] += 1
        row["weights"] += math.prod(tensor["shape"])
        row["bytes"] += tensor["bytes"]
    return dict(sorted(types.items(), key=lambda item: -item[1]["bytes"]))


def _read_json(path: Path) -> Facts:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise ModelError(f"{path}: not valid JSON; copy or save it again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: not a JSON object")
    return content


BY_SUFFIX = {".gguf": _gguf_facts}
"""What reads a file; one with another ending is taken for GGUF, whose reader says what is wrong with it."""
