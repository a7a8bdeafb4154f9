"""Stage `merge`: one self-contained Hugging Face folder out of base, adapter and tokenizer."""

import hashlib
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from edgeft import __version__
from edgeft.artifact import Artifact
from edgeft.console import Log
from edgeft.errors import ModelError
from edgeft.recipe import Recipe
from edgeft.training.adapters import merge_adapter
from edgeft.training.models import DTYPES, base_sha256, resolve_base


def run(recipe: Recipe, inputs: dict[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Write the merged model in `merge.dtype` with tokenizer, chat template and provenance.json.

    Raises ModelError when the base is not the one the adapter was trained on.
    """
    data, train = inputs["data"], inputs["train"]
    base = resolve_base(recipe)
    summary = json.loads(train.file("summary.json").read_text("utf-8"))
    found = base_sha256(base)
    if found != summary["base_sha256"]:
        raise ModelError(
            f"{base}: its weights have sha256 {found[:12]}…, the adapter was trained on "
            f"{summary['base_sha256'][:12]}…; give the base it was trained on, or train again"
        )
    if summary["method"] == "full":
        source = train.path / "model"
        for shard in sorted(source.glob("*.safetensors")):
            cast = {n: t.to(DTYPES[recipe.merge.dtype]).contiguous() for n, t in load_file(shard).items()}
            save_file(cast, out / shard.name, metadata={"format": "pt"})
    else:
        source = base
        merge_adapter(base, train.path / "adapter", out, recipe.merge.dtype)
    for name in ("model.safetensors.index.json", "generation_config.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    config = json.loads((source / "config.json").read_text("utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = recipe.merge.dtype
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for path in sorted((data.path / "tokenizer").iterdir()):
        shutil.copyfile(path, out / path.name)
    provenance = {
        "recipe_sha256": _recipe_sha256(recipe),
        "data_sha256": _data_sha256(data),
        "base": recipe.model.base,
        "base_sha256": found,
        "edgeft_version": __version__,
        "seed": recipe.seed,
    }
    (out / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    n_bytes = sum(p.stat().st_size for p in out.glob("*.safetensors"))
    log.say(f"merged model: {n_bytes / 1e6:.1f} MB in {recipe.merge.dtype} (torch {torch.__version__})")
    return {"size_bytes": float(n_bytes)}


def _recipe_sha256(recipe: Recipe) -> str:
    """Of the sections that make the weights; budgets and benchmarks may change without making another model."""
    sections = recipe.model_dump(mode="json", include={"seed", "model", "data", "train", "merge"})
    return hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()


def _data_sha256(data: Artifact) -> str:
    """Of the prepared examples, as hashes of their files."""
    names = ("train.jsonl", "validation.jsonl", "test.jsonl")
    return hashlib.sha256("".join(data.files[name].sha256 for name in names).encode()).hexdigest()
