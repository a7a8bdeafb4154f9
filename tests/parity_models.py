"""Faults planted in exports, for the parity tests.

Each makes a GGUF file that is wrong in one way: through the seams the exporter has (another architecture mapping,
or an edited copy of the model folder), or by writing an honest file once more with something in it changed.
"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from edgeft.console import silent_log
from edgeft.export.gguf import write_gguf
from edgeft.export.gguf.architectures import Architecture, TensorRule, llama

ORIGINAL = llama.ARCHITECTURE


def unpermuted(config: dict[str, Any]) -> list[TensorRule]:
    """Query and key rows in transformers' order."""
    rules = [dataclasses.replace(rule, change=lambda tensor: tensor) for rule in llama.tensors(config)]
    return [rule for rule in rules if rule.sources]


def without_biases(config: dict[str, Any]) -> list[TensorRule]:
    return [rule for rule in llama.tensors(config) if not rule.name.endswith("attn_v.bias")]


def other_theta(config: dict[str, Any]) -> dict[str, Any]:
    return llama.hyperparameters(config) | {"rope.freq_base": 500000.0}


ARCHITECTURES: dict[str, Architecture] = {
    "unpermuted q/k": dataclasses.replace(ORIGINAL, tensors=unpermuted),
    "wrong rope theta": dataclasses.replace(ORIGINAL, hyperparameters=other_theta),
    "dropped bias": dataclasses.replace(ORIGINAL, tensors=without_biases, ignored=("*.v_proj.bias",)),
}


def wrong_eos(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", eos_token="<|im_start|>")


def ordinary_token_ends(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=[2, 70])


FOLDERS: dict[str, Callable[[Path], None]] = {
    "wrong EOS": wrong_eos,
    "ordinary token as EOS": ordinary_token_ends,
}
KEYS = {"doubled BOS in the template": {"tokenizer.chat_template": lambda template: "{{ bos_token }}" + template}}
"""The exporter refuses these, so they are planted in its file."""


def plant(fault: str, folder: Path, out: Path, ftype: str = "F16") -> Path:
    """Write the model `folder` as the GGUF file `out` with `fault` in it (`none`: without one)."""
    if fault in FOLDERS:
        copy = out.with_suffix(".folder")
        shutil.copytree(folder, copy)
        FOLDERS[fault](copy)
        folder = copy
    architecture = ARCHITECTURES.get(fault, ORIGINAL)
    write_gguf(folder, out, ftype=ftype, name="tiny", provenance={}, log=silent_log(), architecture=architecture)
    if fault in KEYS:
        honest = out.rename(out.with_suffix(".honest"))
        rewrite(honest, out, keys=KEYS[fault])
    return out


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(
    source: Path,
    out: Path,
    *,
    keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None,
    names: Mapping[str, str] | None = None,
) -> Path:
    """Write the GGUF file `source` once more as `out`, changed.

    `keys` are new values of keys (None drops one; a callable is given the old value), `tensors` functions of
    float32 tensors, `names` new names of tensors.
    """
    keys, tensors, names = keys or {}, tensors or {}, names or {}
    reader = gguf.GGUFReader(source)
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert keys.keys() <= fields.keys()
    assert tensors.keys() | names.keys() <= {tensor.name for tensor in reader.tensors}
    writer = gguf.GGUFWriter(out, fields.pop("general.architecture").contents())
    with contextlib.closing(writer):
        for key, field in fields.items():
            value = keys.get(key, field.contents()) if key in keys else field.contents()
            value = value(field.contents()) if callable(value) else value
            if value is not None:
                writer.add_key_value(key, value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
        for tensor in reader.tensors:
            change = tensors.get(tensor.name)
            name = names.get(tensor.name, tensor.name)
            if change is None:
                writer.add_tensor(name, tensor.data, raw_dtype=tensor.tensor_type)
            else:
                writer.add_tensor(name, np.ascontiguousarray(change(tensor.data), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    return out
