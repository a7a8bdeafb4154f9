"""Finding and loading models. Weights are read from safetensors only, never from pickles."""

import hashlib
import json
from importlib.resources import files
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
)

from edgeft.checkpoint_files import weight_files
from edgeft.data.tokenizing import TEMPLATES as TEMPLATES
from edgeft.data.tokenizing import apply_template as apply_template
from edgeft.data.tokenizing import load_tokenizer as load_tokenizer
from edgeft.errors import ModelError
from edgeft.recipe import Recipe
from edgeft.sections import NANO

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast_type(torch_dtype: str) -> torch.dtype | None:
    """The type for torch.autocast when products run in `torch_dtype`; None where they run in float32 anyway."""
    return None if torch_dtype == "float32" else DTYPES[torch_dtype]


PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "consolidated.00.pth")


def resolve_base(recipe: Recipe) -> Path:
    """The folder of the recipe's base model.

    Raises ModelError when it is missing, has no config, no safetensors weights or no tokenizer.
    """
    base = recipe.model.base
    folder = Path(str(files("edgeft") / "assets" / "nano")) if base == NANO else recipe.resolve(base)
    if not folder.is_dir():
        raise ModelError(f"model.base: {folder} is not a folder; give {NANO} or a local Hugging Face model folder")
    check_model_folder(folder)
    return folder


def check_model_folder(folder: Path) -> None:
    """Refuse early, by name, what could only fail later. Raises ModelError."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no config.json; a model folder as transformers saves it is needed")
    weights = weight_files(folder)
    if not weights:
        pickles = [name for name in PICKLES if (folder / name).exists()]
        if pickles:
            raise ModelError(
                f"{folder}: its weights are only in {pickles[0]}, a pickle, which can run code when loaded; "
                "convert it once where you trust it: model.save_pretrained(folder, safe_serialization=True)"
            )
        others = sorted(path.name for path in folder.glob("*.safetensors"))
        beside = f"; it has {', '.join(others[:3])}, which transformers does not read" if others else ""
        raise ModelError(f"{folder}: no weights: neither model.safetensors nor its index with shards{beside}")
    for path in weights:
        check_safetensors(path)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelError(f"{folder}: no tokenizer (tokenizer.json, tokenizer.model or vocab.json); copy the base's")


def check_safetensors(path: Path) -> None:
    """Check that the file is as long as its header says. Raises ModelError naming the file.

    Format: 8 bytes little-endian header length, the JSON header, then the tensors' bytes
    (https://huggingface.co/docs/safetensors, "Format").
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > size - 8:
            raise ModelError(f"{path}: truncated or not a safetensors file; copy it again")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise ModelError(f"{path}: its safetensors header is not JSON ({error}); copy it again") from error
    end = max((t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"), default=0)
    if 8 + length + end != size:
        raise ModelError(f"{path}: {size} bytes where its header asks for {8 + length + end}: truncated; copy it again")


def base_sha256(folder: Path) -> str:
    """Content of the folder's weights: the sha256 over the sha256 of each safetensors file, in name order."""
    total = hashlib.sha256()
    for path in weight_files(folder):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def load_model(folder: Path, dtype: str = "float32", **kwargs: object) -> PreTrainedModel:
    """The folder's causal language model in `dtype`, on the GPU if there is one.

    Raises ModelError when transformers does not know the architecture or the weights do not fit it.
    """
    check_model_folder(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=DTYPES[dtype],
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            **kwargs,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: transformers cannot load this model: {error}") from error
    if torch.cuda.is_available() and "device_map" not in kwargs:
        torch.nn.Module.cuda(model)
    return model
