"""A Hugging Face model folder: its JSON files and its tensors, read without torch.

The safetensors format: https://huggingface.co/docs/safetensors (a length, a JSON header, then raw bytes).
"""

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.checkpoint_files import INDEX, WEIGHTS, weight_files
from edgeft.errors import ModelError

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
MAX_HEADER_BYTES = 100_000_000
# bfloat16 has no numpy type: its bits are read as uint16 and widened.
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
BUFFERS = ("position_ids", "token_type_ids", ".attn.bias")
"""Ends of the names of what older checkpoints of BERT and GPT-2 hold beside weights: numbered positions, masks."""


@dataclass(frozen=True)
class ModelFolder:
    """The JSON files of a model. Optional ones are empty where the folder has none."""

    path: Path
    config: dict[str, Any]
    generation_config: dict[str, Any]
    tokenizer: dict[str, Any]
    """`tokenizer.json`: the whole tokenizer."""
    tokenizer_config: dict[str, Any]
    chat_template: str | None

    def special_id(self, name: str) -> int | None:
        """Id of the token `tokenizer_config.json` calls `<name>_token`, or None."""
        text = self.special_text(name)
        return None if text is None else self.token_ids.get(text)

    def special_text(self, name: str) -> str | None:
        """Text of the token `tokenizer_config.json` calls `<name>_token`, or None."""
        token = self.tokenizer_config.get(f"{name}_token")
        text: str | None = token.get("content") if isinstance(token, dict) else token
        return text

    @functools.cached_property
    def token_ids(self) -> dict[str, int]:
        """Every token of the tokenizer and its id; added tokens win over equal entries of the vocabulary."""
        added = {token["content"]: token["id"] for token in self.tokenizer.get("added_tokens", [])}
        vocabulary = self.tokenizer["model"].get("vocab", {})
        if isinstance(vocabulary, list):  # unigram: [text, score], in the order of the ids
            vocabulary = {text: token for token, (text, _) in enumerate(vocabulary)}
        return {**vocabulary, **added}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: `start` is the byte offset in `file`. A row is what the last axis holds."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def n_rows(self) -> int:
        """Rows of all matrices together; a vector is one."""
        return math.prod(self.shape[:-1])

    def raw_rows(self, first: int, last: int) -> np.ndarray:
        """The bytes of the rows `first` to `last` (exclusive) as they are stored: uint8 (rows, row_bytes).

        Raises ModelError when the file has become shorter.
        """
        row_bytes = math.prod(self.shape[-1:]) * np.dtype(DTYPES[self.dtype]).itemsize
        data = np.fromfile(self.file, np.uint8, (last - first) * row_bytes, offset=self.start + first * row_bytes)
        if data.size != (last - first) * row_bytes:
            raise ModelError(f"{self.file}: became shorter while it was read; copy it again")
        return data.reshape(last - first, row_bytes)

    def rows(self, first: int, last: int) -> np.ndarray:
        """The rows `first` to `last` (exclusive): float32 or float16 as stored, bfloat16 and float64 as float32."""
        flat = self.raw_rows(first, last).reshape(-1).view(DTYPES[self.dtype])
        if self.dtype == "BF16":
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        elif self.dtype == "F64":
            flat = flat.astype(np.float32)
        return flat.reshape(last - first, -1)

    def read(self) -> np.ndarray:
        """The whole tensor, typed as `rows`."""
        return self.rows(0, self.n_rows).reshape(self.shape)


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a model folder, read one at a time."""

    path: Path
    tensors: dict[str, StoredTensor]

    def read(self, name: str) -> np.ndarray:
        """The tensor `name`: float32 or float16 as stored, bfloat16 and float64 as float32."""
        return self.tensors[name].read()


def read_folder(path: Path) -> ModelFolder:
    """Read the JSON files of the model folder `path`. Raises ModelError when a needed one is missing."""
    if not path.is_dir():
        raise ModelError(f"{path}: no such model folder")
    config = _Config(_read_json(path / "config.json", "is this a model folder?"))
    tokenizer = _read_json(
        path / "tokenizer.json",
        "save the tokenizer next to the model: AutoTokenizer.from_pretrained(...).save_pretrained(...)",
    )
    if not isinstance(tokenizer.get("model"), dict):
        raise ModelError(f"{path / 'tokenizer.json'}: not a tokenizer (it has no `model`)")
    tokenizer_config = _read_json(path / "tokenizer_config.json")
    return ModelFolder(
        path=path,
        config=config,
        generation_config=_read_json(path / "generation_config.json"),
        tokenizer=tokenizer,
        tokenizer_config=tokenizer_config,
        chat_template=_chat_template(path, tokenizer_config),
    )


def open_checkpoint(path: Path) -> Checkpoint:
    """The safetensors of the model folder `path` that transformers would read, in one file or in shards.

    Raises ModelError when there are none, a file is damaged, cut short or missing, or only pickles are there.
    """
    files = weight_files(path)
    if not files:
        raise _no_weights(path)
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        tensors |= read_safetensors(file)
    return Checkpoint(path, tensors)


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The weights in one safetensors file, each checked to lie whole inside it; nothing but the header is read.

    Raises ModelError when the file is missing, damaged or cut short.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            n_header = int.from_bytes(file.read(8), "little")
            if size < 8 or n_header > min(MAX_HEADER_BYTES, size - 8):
                raise ModelError(f"{path}: damaged or cut short ({size} bytes); copy or save it again")
            header = json.loads(file.read(n_header))
    except FileNotFoundError:
        raise ModelError(f"{path.parent}: the shard {path.name} is missing") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise ModelError(f"{path}: damaged (its header is not JSON); copy or save it again") from None
    header.pop("__metadata__", None)
    weights = {n: entry for n, entry in header.items() if entry["dtype"] in DTYPES or not n.endswith(BUFFERS)}
    return {name: _stored(path, name, entry, 8 + n_header, size) for name, entry in weights.items()}


class _Config(dict[str, Any]):
    """config.json; a key it lacks is the user's to mend, not a bug of ours."""

    def __missing__(self, key: str) -> Any:
        raise ModelError(f"config.json has no {key!r}; is it whole?")


def _read_json(path: Path, advice: str | None = None) -> dict[str, Any]:
    """The object in `path`; when the file is not there, `{}`, or ModelError if there is `advice`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if advice is None:
            return {}
        raise ModelError(f"{path.parent}: {path.name} is missing; {advice}") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: not a JSON object")
    return content


def _chat_template(path: Path, tokenizer_config: dict[str, Any]) -> str | None:
    """The default template: `chat_template.jinja`, or the one inside an older `tokenizer_config.json`."""
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        return named.get("default")
    return template


def _no_weights(path: Path) -> ModelError:
    pickles = sorted(file.name for pattern in PICKLES for file in path.glob(pattern))
    if not pickles:
        others = sorted(file.name for file in path.glob("*.safetensors"))
        beside = f"; {', '.join(others[:3])} is not a name that transformers reads" if others else ""
        return ModelError(f"{path}: no weights; {WEIGHTS} (or {INDEX} with its shards) is missing{beside}")
    return ModelError(
        f"{path}: only pickled weights ({pickles[0]}). Opening a pickle can run code of its author, "
        "so edgeft reads only safetensors; where you trust the file, convert it: python -c "
        f"\"from transformers import AutoModelForCausalLM as M; M.from_pretrained('{path}')"
        f".save_pretrained('{path}')\""
    )


def _stored(path: Path, name: str, entry: dict[str, Any], data_start: int, size: int) -> StoredTensor:
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    if dtype not in DTYPES:
        raise ModelError(
            f"{path}: {name} is stored as {dtype}; only {', '.join(DTYPES)} can be exported. "
            "If the weights are quantized, merge them into a full-precision model first"
        )
    begin, end = (data_start + offset for offset in entry["data_offsets"])
    if end > size:
        raise ModelError(f"{path}: cut short: {name} ends at byte {end}, the file at {size}; copy it again")
    if end - begin != math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize:
        raise ModelError(f"{path}: damaged: {name} of shape {shape} has {end - begin} bytes")
    return StoredTensor(path, dtype, shape, begin)
