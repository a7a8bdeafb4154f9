"""Stage `merge`: one self-contained Hugging Face folder out of base, adapter and tokenizer."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from edgeft import __version__
from edgeft.artifact import Artifact
from edgeft.console import Log
from edgeft.errors import ModelError, RecipeError
from edgeft.recipe import Recipe
from edgeft.stages._json import write_json
from edgeft.training.batches import TokenSet
from edgeft.training.merge_base import merge_into_chosen_base
from edgeft.training.merging import cast_model
from edgeft.training.models import base_sha256, resolve_base

DATA_FILES = {"train", "validation", "test", "prepare", "replay", "text", "preference"}
"""Keys of the section `data` that name files, or say how files become the prepared examples."""


def run(recipe: Recipe, inputs: dict[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Write the merged model in `merge.dtype` with tokenizer, chat template and provenance.json.

    Raises ModelError when the base is not the one the adapter was trained on.
    """
    if recipe.train is None:
        raise RecipeError(f"{recipe.name}: the recipe has no train section")
    data, train = inputs["data"], inputs["train"]
    base = resolve_base(recipe)
    summary = json.loads(train.file("summary.json").read_text("utf-8"))
    found = base_sha256(base)
    if found != summary["base_sha256"]:
        raise ModelError(
            f"{base}: its weights have sha256 {found[:12]}…, the adapter was trained on "
            f"{summary['base_sha256'][:12]}…; give the base it was trained on, or train again"
        )
    merged: dict[str, Any] = {}
    dtype, trained = recipe.merge.dtype, train.path / "model"
    if (trained / "config.json").is_file():  # trained in full, or a classifier, whose adapter is merged already
        cast_model(trained, out, dtype)
        _complete(out, trained, data, dtype, {})
    else:
        merged = merge_into_chosen_base(
            recipe.train,
            recipe.merge,
            base,
            train.path / "adapter",
            out,
            TokenSet.load(data.file("tokens-validation.npz")),
            log,
            complete=lambda folder, changes: _complete(folder, base, data, dtype, changes),
        )
    provenance = {
        "recipe_sha256": _recipe_sha256(recipe),
        "data_sha256": _data_sha256(data),
        "base": recipe.base_name,
        "base_sha256": found,
        "edgeft_version": __version__,
        "seed": recipe.seed,
    }
    write_json(out / "provenance.json", provenance | merged)
    n_bytes = sum(p.stat().st_size for p in out.glob("*.safetensors"))
    log.say(f"merged model: {n_bytes / 1e6:.1f} MB in {dtype} (torch {torch.__version__})")
    return {"size_bytes": float(n_bytes), **{name: v for name, v in merged.items() if isinstance(v, float)}}


def _complete(out: Path, source: Path, data: Artifact, dtype: str, changes: dict[str, Any]) -> None:
    """Everything of a model folder but the weights: config with `changes`, generation config, tokenizer."""
    if (source / "generation_config.json").is_file():
        shutil.copyfile(source / "generation_config.json", out / "generation_config.json")
    config = json.loads((source / "config.json").read_text("utf-8"))
    config.pop("torch_dtype", None)
    config |= {"dtype": dtype, **changes}
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for path in sorted((data.path / "tokenizer").iterdir()):
        shutil.copyfile(path, out / path.name)


def _recipe_sha256(recipe: Recipe) -> str:
    """Of the sections that make the weights; budgets and benchmarks may change without making another model.

    Where inputs lie does not count, only their content, which `data_sha256` and `base_sha256` stand for.
    """
    making = {"seed", "model", "data", "train", "merge"}
    sections = recipe.model_dump(mode="json", include=making, exclude={"model": {"base"}, "data": DATA_FILES})
    return hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()


def _data_sha256(data: Artifact) -> str:
    """Of the prepared examples, as hashes of their files."""
    names = ("train.jsonl", "validation.jsonl", "test.jsonl")
    return hashlib.sha256("".join(data.files[name].sha256 for name in names).encode()).hexdigest()
