"""Faults planted in exports, for the parity tests.

Each makes a GGUF file that is wrong in one way, through the seams the exporter has: another architecture
mapping, or an edited copy of the model folder.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def doubled_bos(folder: Path) -> None:
    template = folder / "chat_template.jinja"
    template.write_text("{{ bos_token }}" + template.read_text())


FOLDERS: dict[str, Callable[[Path], None]] = {
    "wrong EOS": wrong_eos,
    "ordinary token as EOS": ordinary_token_ends,
    "doubled BOS in the template": doubled_bos,
}


def plant(fault: str, folder: Path, out: Path, ftype: str = "F16") -> Path:
    """Write the model `folder` as the GGUF file `out` with `fault` in it (`none`: without one)."""
    if fault in FOLDERS:
        copy = out.with_suffix(".folder")
        shutil.copytree(folder, copy)
        FOLDERS[fault](copy)
        folder = copy
    architecture = ARCHITECTURES.get(fault, ORIGINAL)
    write_gguf(folder, out, ftype=ftype, name="tiny", provenance={}, log=silent_log(), architecture=architecture)
    return out


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
